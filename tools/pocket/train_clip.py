"""Train the pocket picture encoder on the corpus: open_clip's vision transformer, 336/14, 6 layers of 192.

    python tools/pocket/train_clip.py --corpus data/pocket --run-dir runs/pocket_clip --steps 1200

It learns to tell from one frame what the corpus knows of that second: motion, brightness, colour
temperature, family and kind of scene; and from what changed since the frame a second before: motion, and
whether there was a cut. The heads that tell are thrown away; the network reads the patch features.
Killed runs go on from their last checkpoint; the result is written to `<run-dir>/clip` as a folder of
open_clip's own form.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as fn
from init_untrained import CLIP_CONFIG
from safetensors.torch import save_file
from scenario import FAMILIES, SCENE_KINDS
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gvmgen.encoders.media import read_frames

SIZE = 336  # pixels, the encoder's own square
CURVES = ("motion", "brightness", "temperature")
NUM_OUTPUTS = len(CURVES) + len(FAMILIES) + len(SCENE_KINDS)
CURVE_WEIGHTS = (16.0, 4.0, 4.0)  # motion is the hardest to see in one frame
HELD_OUT_EVERY = 12  # every twelfth pair is for the curve only
CONSTANT = 30.0  # against coefficients of standard deviation 1
PLACES = ("class", "patches")  # from where the heads read a frame

Frame = tuple[bytes, list[float]]  # JPEG, and the targets: curves, family, kind, whether it follows a cut


def frames_of(truth_path: Path) -> list[Frame]:
    """The frame of every second of a pair."""
    cv2.setNumThreads(1)
    truth = json.loads(truth_path.read_text())
    after_cuts = {math.ceil(cut) for cut in truth["cuts_s"]}
    rows = []
    for second, frame in enumerate(read_frames(truth_path.with_suffix(".mkv"))):
        _, jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        classes = [FAMILIES.index(truth["family"][second]), SCENE_KINDS.index(truth["kind"][second])]
        curves = [truth[curve][second] for curve in CURVES]
        rows.append((jpeg.tobytes(), [*curves, *classes, second in after_cuts]))
    return rows


def load_videos(corpus: Path) -> tuple[list[list[Frame]], list[list[Frame]]]:
    """(training, held-out) videos, each its frames."""
    truths = sorted(corpus.glob("pair_*.json"))
    if not truths:
        raise SystemExit(f"{corpus}: no pairs. Run: python tools/pocket/corpus.py --out {corpus}")
    with Pool(2) as pool:
        videos = pool.map(frames_of, truths, chunksize=4)
    return [v for i, v in enumerate(videos) if i % HELD_OUT_EVERY], videos[::HELD_OUT_EVERY]


@dataclass(frozen=True)
class View:
    """How two frames of a video are shown: cut from anywhere, mirrored, tinted, grainy. Plain by default."""

    start: float = 0.5
    flips: tuple[bool, bool] = (False, False)
    contrast: float = 1.0
    tint: tuple[float, ...] = (0.0, 0.0, 0.0)
    grain: float = 0.0  # standard deviation, of 255

    @classmethod
    def draw(cls, rng: np.random.Generator) -> View:
        return cls(
            start=rng.random(),
            flips=(rng.random() < 0.5, rng.random() < 0.2),
            contrast=rng.uniform(0.7, 1.1),
            tint=tuple(rng.normal(0, 0.02, 3)),
            grain=float(rng.choice([0, 4])),
        )

    def show(self, jpeg: bytes) -> np.ndarray:
        """float32 [3, 336, 336] as CLIP normalises it."""
        frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        start = round(self.start * (frame.shape[1] - SIZE))
        frame = frame[:SIZE, start : start + SIZE]
        frame = frame[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]
        if self.grain:
            noise = cv2.randn(np.empty(frame.shape, np.int16), 0, self.grain)
            frame = np.clip(frame + noise, 0, 255).astype(np.uint8)
        mean = frame[::8, ::8].mean() / 255
        levels = np.linspace(0, 1, 256)[:, None] - mean
        table = np.clip(levels * self.contrast + mean + np.array(self.tint), 0, 1)  # [256, 3]
        preprocess = CLIP_CONFIG["preprocess_cfg"]
        table = ((table - preprocess["mean"]) / preprocess["std"]).astype(np.float32)
        return np.stack([table[:, channel].take(frame[..., channel]) for channel in range(3)])


def draw_batch(videos: list, step: int, seed: int, num_pairs: int) -> tuple[Tensor, Tensor]:
    """(pictures [2 B, 3, 336, 336], targets [2 B, 6]), each frame after the one before, by (seed, step)."""
    rng = np.random.default_rng((seed, step))
    cv2.setRNGSeed(int(rng.integers(2**31)))
    pictures, targets = [], []
    for video in rng.integers(len(videos), size=num_pairs):
        second = int(rng.integers(1, len(videos[video])))
        view = View.draw(rng)
        for jpeg, known in videos[video][second - 1 : second + 1]:
            pictures.append(view.show(jpeg))
            targets.append(known)
    return torch.from_numpy(np.stack(pictures)), torch.tensor(targets)


class SharedPatchDropout(nn.Module):
    """Drops the same patches of every frame, so that what changed between two can be seen in the rest."""

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.dropped = dropped

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1 + P, D] -> [B, 1 + kept, D]."""
        if not self.training or not self.dropped:
            return tokens
        num_patches = tokens.shape[1] - 1
        kept = torch.randperm(num_patches)[: round(num_patches * (1 - self.dropped))]
        return torch.cat([tokens[:, :1], tokens[:, 1:][:, kept]], dim=1)


class Teller(nn.Module):
    """The encoder and what tells from it: a head on the class token, one on the mean of the patches, and one
    on what changed since the frame before, patch by patch and of their mean."""

    def __init__(self, dropped_patches: float) -> None:
        super().__init__()
        config = CLIP_CONFIG["model_cfg"]
        self.clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        visual = self.clip.visual
        visual.patch_dropout = SharedPatchDropout(dropped_patches)
        visual.ln_post.register_forward_pre_hook(self._keep_tokens)  # the network reads what comes before it
        width = config["vision_cfg"]["width"]
        self.heads = nn.ModuleList(nn.Linear(dim, NUM_OUTPUTS) for dim in (config["embed_dim"], width))
        self.change_head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pictures as `draw_batch` gives them -> the class token's and the patches' guesses,
        each [2 B, outputs], and [B, 2] from the changes: motion and the logit of a cut."""
        pooled = self.clip.visual(pictures)
        patches = self._tokens[:, 1:]
        guesses = [head(x) for head, x in zip(self.heads, (pooled, patches.mean(1)), strict=True)]
        change = patches[1::2].float() - patches[::2].float()
        seen = torch.cat([change.abs().mean(1), change.mean(1).abs()], dim=1)
        return guesses, self.change_head(seen)

    def _keep_tokens(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        (self._tokens,) = inputs


@torch.no_grad()
def start_from_waves(visual: open_clip.transformer.VisionTransformer, pictures: Tensor) -> None:
    """Begin with tokens that hold, linearly, what a patch looks like and how rough it is. pictures: a batch.

    From a random start motion was learned last, if at all: what the waves find in a smeared patch differs in
    strength, but its sign is chance, and every norm divides by the strength of the whole. So half of the
    first block's hidden units tell the strength of each wave, and two channels that hold a large constant
    keep the norms nearly linear; the last block takes the constant off again.
    """
    constants = (-2, -1)
    signs = torch.tensor([1.0, -1.0])
    filters = cosine_filters(visual.conv1.weight.shape[0] - 2, visual.conv1.weight.shape[-1])
    found = fn.conv2d(pictures, filters, stride=filters.shape[-1])  # [B, waves, 24, 24]
    visual.conv1.weight.zero_()
    visual.conv1.weight[:-2] = filters / found.std(dim=(0, 2, 3))[:, None, None, None]
    visual.positional_embedding.mul_(0.3)
    visual.positional_embedding[:, constants] = CONSTANT * signs
    width = len(visual.conv1.weight)
    size = ((2 * CONSTANT**2 + width) / width) ** 0.5  # what a norm divides by
    visual.ln_pre.weight.fill_(size)
    first, last = visual.transformer.resblocks[0].mlp, visual.transformer.resblocks[-1].mlp
    feel_roughness(first, gain=2.5 * size)
    last[2].bias[constants,] = -CONSTANT * signs


def feel_roughness(feed_forward: nn.Sequential, gain: float, size: float = 0.3) -> None:
    """Let a block's first hidden units tell how strong each channel is, whatever its sign."""
    up, down = feed_forward[0], feed_forward[2]
    dim = up.in_features
    directions, _ = torch.linalg.qr(torch.randn(dim, dim))
    for first, sign in ((0, 1.0), (dim, -1.0)):
        up.weight[first : first + dim] = sign * gain * torch.eye(dim)
        up.weight[first + dim - 2 : first + dim] = 0  # the constants
        up.bias[first : first + dim] = 0
        down.weight[:, first : first + dim] = size * directions


def cosine_filters(count: int, patch: int) -> Tensor:
    """[count, 3, patch, patch]: cosine waves of rising frequency, most in light, the rest in colour."""
    place = torch.arange(patch) + 0.5
    order = torch.arange(patch)
    waves = torch.cos(math.pi / patch * order[:, None] * place)  # [frequency, pixel]
    bases = waves[:, None, :, None] * waves[None, :, None, :]  # [vertical, horizontal, y, x]
    frequency = (order[:, None] ** 2 + order**2).sqrt().flatten()
    bases = bases.flatten(0, 1)[frequency.argsort()] / patch**2
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]]) / 3**0.5
    counts = (count - 2 * (count // 5), count // 5, count // 5)
    return torch.cat([bases[:n, None] * c[:, None, None] for n, c in zip(counts, colours, strict=True)])


def losses(guesses: list[Tensor], changes: Tensor, targets: Tensor) -> Tensor:
    now = targets[1::2]
    changes = changes.float()
    cut = fn.binary_cross_entropy_with_logits(changes[:, 1], now[:, 5])
    uncut = 1 - now[:, 5]
    motion = (fn.smooth_l1_loss(changes[:, 0], now[:, 0], beta=0.1, reduction="none") * uncut).mean()
    return sum((guess_losses(guess, targets) for guess in guesses), cut + CURVE_WEIGHTS[0] / 3 * motion)


def guess_losses(guess: Tensor, targets: Tensor) -> Tensor:
    curves, families, kinds = guess.float().split([len(CURVES), len(FAMILIES), len(SCENE_KINDS)], dim=1)
    regression = fn.smooth_l1_loss(curves, targets[:, :3], beta=0.1, reduction="none").mean(0)  # [curve]
    classes = targets[:, 3:5].long()
    return (
        (regression * torch.tensor(CURVE_WEIGHTS)).mean()
        + 0.3 * fn.cross_entropy(families, classes[:, 0])
        + 0.1 * fn.cross_entropy(kinds, classes[:, 1])
    )


@torch.no_grad()
def evaluate(model: Teller, videos: list[list[Frame]], limit: int = 20) -> dict:
    """On held-out videos with every patch seen. R² of the curves, rank correlation of motion, accuracies; of
    the changes, motion's rank correlation and the area under the curve of cuts."""
    model.eval()
    guesses, changes, targets = ([], []), [], []
    for video in videos[:limit]:
        rows = [row for pair in pairwise(video) for row in pair]
        for start in range(0, len(rows), 14):
            batch = rows[start : start + 14]
            with torch.autocast("cpu", torch.bfloat16):
                told, changed = model(torch.from_numpy(np.stack([View().show(jpeg) for jpeg, _ in batch])))
            for kept, guess in zip(guesses, told, strict=True):
                kept.append(guess[1::2].float())
            changes.append(changed.float())
            targets += [known for _, known in batch[1::2]]
    model.train()
    known, changed = torch.tensor(targets), torch.cat(changes)
    uncut = known[:, 5] == 0
    report = {
        "changes": {
            "motion_rho": rank_correlation(changed[uncut, 0], known[uncut, 0]),
            "cut_auc": round(roc_auc_score(known[:, 5], changed[:, 1]), 3),
        }
    }
    for name, kept in zip(PLACES, guesses, strict=True):
        guess = torch.cat(kept)
        error = (guess[:, :3] - known[:, :3]).square().mean(0) / known[:, :3].var(0)
        report[name] = {curve: round(1 - e.item(), 3) for curve, e in zip(CURVES, error, strict=True)}
        report[name]["motion_rho"] = rank_correlation(guess[:, 0], known[:, 0])
        report[name]["family"] = round((guess[:, 3:7].argmax(1) == known[:, 3]).float().mean().item(), 3)
        report[name]["kind"] = round((guess[:, 7:].argmax(1) == known[:, 4]).float().mean().item(), 3)
    return report


def rank_correlation(guess: Tensor, known: Tensor) -> float:
    return round(float(spearmanr(guess, known).statistic), 3)


def export(model: Teller, folder: Path) -> None:
    """fp16 weights and the configuration, in open_clip's own form."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG, indent=2) + "\n")
    weights = {name: tensor.half().contiguous() for name, tensor in model.clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("data/pocket"))
    parser.add_argument("--run-dir", type=Path, default=Path("runs/pocket_clip"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--dropped-patches", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 60) -> float:
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(args: argparse.Namespace) -> None:
    args.run_dir.mkdir(parents=True, exist_ok=True)
    videos, held_out = load_videos(args.corpus)
    torch.manual_seed(args.seed)
    model = Teller(args.dropped_patches).train()
    start_from_waves(model.clip.visual, draw_batch(videos, 0, args.seed, 60)[0])
    parameters = [*model.clip.visual.parameters(), *model.heads.parameters(), *model.change_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05, fused=True)
    step, checkpoint = 0, args.run_dir / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    log = (args.run_dir / "log.jsonl").open("a")
    started, first = time.time(), step
    while step < args.steps:
        pictures, targets = draw_batch(videos, step, args.seed, args.batch_size // 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        torch.manual_seed(args.seed * 1_000_003 + step)
        # of so few patches, plain attention has the faster way back
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = losses(*model(pictures), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0 or step == args.steps:
            row = {"step": step, "s_per_step": round((time.time() - started) / (step - first), 3)}
            row["loss"] = round(loss.item(), 4)
            if step % 200 == 0 or step == args.steps:
                row["held_out"] = evaluate(model, held_out)
                aside = checkpoint.with_suffix(".tmp")
                torch.save(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside
                )
                aside.replace(checkpoint)
                export(model, args.run_dir / "clip")
            print(json.dumps(row), file=log, flush=True)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Train the pocket picture encoder on the corpus: open_clip's vision transformer, 336/14, 6 layers of 192.

    python tools/pocket/train_clip.py --corpus data/pocket --run-dir runs/pocket_clip --steps 1200

It learns to tell from one frame what the corpus knows of that second: motion, brightness, colour
temperature, family and kind of scene. The heads that tell are thrown away; the network reads the patch
features. Killed runs go on from their last checkpoint; the result is written to `<run-dir>/clip` as a
folder of open_clip's own form.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as fn
from init_untrained import CLIP_CONFIG
from open_clip.transformer import PatchDropout
from safetensors.torch import save_file
from scenario import FAMILIES, SCENE_KINDS
from torch import Tensor, nn

from gvmgen.encoders.media import read_frames

SIZE = 336  # pixels, the encoder's own square
CURVES = ("motion", "brightness", "temperature")
NUM_OUTPUTS = len(CURVES) + len(FAMILIES) + len(SCENE_KINDS)
CURVE_WEIGHTS = (8.0, 4.0, 4.0)  # motion is the hardest to see in one frame
HELD_OUT_EVERY = 12  # every twelfth pair is for the curve only


def frames_of(truth_path: Path) -> list[tuple[bytes, list[float]]]:
    """(JPEG of the frame, targets) of every second of a pair."""
    cv2.setNumThreads(1)
    truth = json.loads(truth_path.read_text())
    rows = []
    for second, frame in enumerate(read_frames(truth_path.with_suffix(".mkv"))):
        _, jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        classes = [FAMILIES.index(truth["family"][second]), SCENE_KINDS.index(truth["kind"][second])]
        rows.append((jpeg.tobytes(), [truth[curve][second] for curve in CURVES] + classes))
    return rows


def load_frames(corpus: Path) -> tuple[list, list]:
    """(training, held-out) frames with their targets."""
    truths = sorted(corpus.glob("pair_*.json"))
    if not truths:
        raise SystemExit(f"{corpus}: no pairs. Run: python tools/pocket/corpus.py --out {corpus}")
    with Pool(2) as pool:
        pairs = pool.map(frames_of, truths, chunksize=4)
    held_out = [row for i, pair in enumerate(pairs) if i % HELD_OUT_EVERY == 0 for row in pair]
    return [row for i, pair in enumerate(pairs) if i % HELD_OUT_EVERY for row in pair], held_out


def picture(jpeg: bytes, rng: np.random.Generator | None) -> np.ndarray:
    """float32 [3, 336, 336] as CLIP normalises it; with `rng` cut anywhere, mirrored, grainy."""
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    room = frame.shape[1] - SIZE
    start = room // 2 if rng is None else int(rng.integers(room + 1))
    frame = frame[:SIZE, start : start + SIZE].astype(np.float32) / 255
    if rng is not None:
        frame = frame[:, ::-1] if rng.random() < 0.5 else frame
        frame = frame[::-1] if rng.random() < 0.2 else frame
        contrast = rng.uniform(0.7, 1.1)
        frame = (frame - frame.mean()) * contrast + frame.mean() + rng.normal(0, 0.02, 3)
        frame = frame + rng.normal(0, rng.choice([0, 0.015]), frame.shape)
    preprocess = CLIP_CONFIG["preprocess_cfg"]
    normal = (np.clip(frame, 0, 1) - preprocess["mean"]) / preprocess["std"]
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def draw_batch(rows: list, step: int, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """(pictures [B, 3, 336, 336], targets [B, 5]), a pure function of (seed, step)."""
    rng = np.random.default_rng((seed, step))
    chosen = [rows[i] for i in rng.integers(len(rows), size=batch_size)]
    pictures = np.stack([picture(jpeg, rng) for jpeg, _ in chosen])
    return torch.from_numpy(pictures), torch.tensor([targets for _, targets in chosen])


class Teller(nn.Module):
    """The encoder and two heads: one reads the class token, one the mean of the patches."""

    def __init__(self, dropped_patches: float) -> None:
        super().__init__()
        config = CLIP_CONFIG["model_cfg"]
        self.clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        visual = self.clip.visual
        visual.patch_dropout = PatchDropout(dropped_patches)
        visual.output_tokens = True
        filters = visual.conv1.weight
        filters.data.copy_(cosine_filters(filters.shape[0], filters.shape[-1]))
        width = config["vision_cfg"]["width"]
        self.heads = nn.ModuleList(
            [nn.Linear(config["embed_dim"], NUM_OUTPUTS), nn.Linear(width, NUM_OUTPUTS)]
        )

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """[B, 3, 336, 336] -> the class token's and the patches' guesses, each [B, outputs]."""
        pooled, patches = self.clip.visual(pictures)
        return [head(x) for head, x in zip(self.heads, (pooled, patches.mean(1)), strict=True)]


def cosine_filters(count: int, patch: int) -> Tensor:
    """[count, 3, patch, patch]: cosine waves of rising frequency, most in light, the rest in colour.

    A start that sees texture and its smear at once; from random filters 300 steps learned no motion.
    The finer waves are raised, as pictures have less of them.
    """
    place = torch.arange(patch) + 0.5
    order = torch.arange(patch)
    waves = torch.cos(math.pi / patch * order[:, None] * place)  # [frequency, pixel]
    bases = waves[:, None, :, None] * waves[None, :, None, :]  # [vertical, horizontal, y, x]
    frequency = (order[:, None] ** 2 + order**2).sqrt().flatten()
    bases = bases.flatten(0, 1) * (3 * (1 + frequency) ** 1.5 / patch**2)[:, None, None]
    bases = bases[frequency.argsort()]
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]]) / 3**0.5
    counts = (count - 2 * (count // 5), count // 5, count // 5)
    return torch.cat([bases[:n, None] * c[:, None, None] for n, c in zip(counts, colours, strict=True)])


def guess_losses(guess: Tensor, targets: Tensor) -> Tensor:
    curves, families, kinds = guess.float().split([len(CURVES), len(FAMILIES), len(SCENE_KINDS)], dim=1)
    regression = fn.smooth_l1_loss(curves, targets[:, :3], beta=0.1, reduction="none").mean(0)  # [curve]
    classes = targets[:, 3:].long()
    return (
        (regression * torch.tensor(CURVE_WEIGHTS)).mean()
        + 0.3 * fn.cross_entropy(families, classes[:, 0])
        + 0.1 * fn.cross_entropy(kinds, classes[:, 1])
    )


@torch.no_grad()
def evaluate(model: Teller, rows: list, limit: int = 240) -> dict:
    """R² of the curves and accuracies, of both heads, on held-out pairs with every patch seen."""
    model.eval()
    rows = rows[:: max(1, len(rows) // limit)]
    report = {}
    guesses = [[], []]
    for start in range(0, len(rows), 16):
        batch = torch.from_numpy(np.stack([picture(jpeg, None) for jpeg, _ in rows[start : start + 16]]))
        for kept, guess in zip(guesses, model(batch), strict=True):
            kept.append(guess)
    targets = torch.tensor([t for _, t in rows])
    for name, kept in zip(("class", "patches"), guesses, strict=True):
        guess = torch.cat(kept)
        error = (guess[:, :3] - targets[:, :3]).square().mean(0) / targets[:, :3].var(0)
        report[name] = {curve: round(1 - e.item(), 3) for curve, e in zip(CURVES, error, strict=True)}
        families = guess[:, 3:7].argmax(1) == targets[:, 3]
        report[name]["family"] = round(families.float().mean().item(), 3)
        kinds = guess[:, 7:].argmax(1) == targets[:, 4]
        report[name]["kind"] = round(kinds.float().mean().item(), 3)
    model.train()
    return report


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
    parser.add_argument("--lr", type=float, default=1e-3)
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
    rows, held_out = load_frames(args.corpus)
    torch.manual_seed(args.seed)
    model = Teller(args.dropped_patches).train()
    parameters = [*model.clip.visual.parameters(), *model.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05)
    step, checkpoint = 0, args.run_dir / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    log = (args.run_dir / "log.jsonl").open("a")
    started, first = time.time(), step
    while step < args.steps:
        pictures, targets = draw_batch(rows, step, args.seed, args.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        torch.manual_seed(args.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            guesses = model(pictures)
        loss = sum(guess_losses(guess, targets) for guess in guesses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0 or step == args.steps:
            row = {"step": step, "s_per_step": round((time.time() - started) / (step - first), 3)}
            row["loss"] = round(loss.item(), 4)
            if step % 100 == 0 or step == args.steps:
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

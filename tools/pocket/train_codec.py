"""Train the pocket codec on composed music: transformers' EncodecModel, 16 filters, 4 x 2048 codes at 50 Hz.

    python tools/pocket/train_codec.py --run-dir runs/pocket_codec --steps 5000

The first steps train a plain autoencoder; then k-means over its outputs starts the codebooks, which go on
by exponential moving averages (van den Oord et al. 2017), dead codes being revived from the batch. Killed
runs go on from their last checkpoint; the result is written to `<run-dir>/codec` in the transformers
format.

    python tools/pocket/train_codec.py --run-dir runs/pocket_decoder --decoder-of gvmgen/pocket/codec

trains the decoder of a codec alone: its codes stay what they are, and what composes them need not change.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from compose import compose
from measures import mel_distance, si_sdr_db
from render_music import render_music
from scenario import make_scenario
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from gvmgen.machine import keep_freed_memory

SAMPLE_RATE = 32_000
STRIDE = 640
HELD_OUT_SEED = 9_000_000  # pieces from this seed on are never trained on


def pocket_codec_config() -> EncodecConfig:
    return EncodecConfig(
        target_bandwidths=[2.2],  # kbit/s: 4 codebooks x 11 bits x 50 Hz
        sampling_rate=SAMPLE_RATE,
        audio_channels=1,
        normalize=False,
        num_filters=16,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        codebook_dim=64,
        hidden_size=64,
        num_lstm_layers=1,
        pad_mode="constant",
        use_causal_conv=False,
        use_conv_shortcut=False,
    )


def rendered_piece(seed: int) -> np.ndarray:
    """int16 [480000]: the music of one scenario."""
    waveform = render_music(compose(make_scenario(seed)), 15.0)
    return np.round(waveform * 32767).astype(np.int16)


def load_music(path: Path, first_seed: int, num_pieces: int) -> np.ndarray:
    """int16 [pieces, N], rendered once and kept at `path`."""
    if path.exists():
        music = np.load(path, mmap_mode="r")
        if len(music) >= num_pieces:
            return music[:num_pieces]
    with Pool(2) as pool:
        music = np.stack(pool.map(rendered_piece, range(first_seed, first_seed + num_pieces), chunksize=8))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, music)
    return music


def draw_batch(music: np.ndarray, step: int, seed: int, batch_size: int, seconds: float) -> Tensor:
    """float32 [B, 1, N], a pure function of (seed, step): excerpts from a code frame on, not silent."""
    rng = np.random.default_rng((seed, step))
    length = round(seconds * SAMPLE_RATE)
    rows: list[np.ndarray] = []
    while len(rows) < batch_size:
        piece = music[int(rng.integers(len(music)))]
        start = int(rng.integers((len(piece) - length) // STRIDE + 1)) * STRIDE
        row = piece[start : start + length].astype(np.float32) / 32768
        if np.sqrt(np.mean(row**2)) > 3e-3:
            rows.append(row)
    return torch.from_numpy(np.stack(rows))[:, None]


class MovingCodebook:
    """One codebook trained by moving averages; `layer.codebook` is the module that ships."""

    def __init__(self, codebook: torch.nn.Module, decay: float = 0.99) -> None:
        self.codebook, self.decay = codebook, decay

    def start(self, vectors: Tensor, rounds: int = 10) -> None:
        """k-means from random vectors [n, D]."""
        size = len(self.codebook.embed)
        centres = vectors[torch.randperm(len(vectors))[:size]].clone()
        for _ in range(rounds):
            nearest = torch.cdist(vectors, centres).argmin(1)
            counts = torch.bincount(nearest, minlength=size).float()
            sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
            centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centres)
            empty = (counts == 0).nonzero()[:, 0]
            centres[empty] = vectors[torch.randint(len(vectors), (len(empty),))]
        self.codebook.embed.copy_(centres)
        self.codebook.cluster_size.copy_(counts / counts.sum())
        self.codebook.embed_avg.copy_(centres * self.codebook.cluster_size[:, None])

    def update(self, vectors: Tensor, ids: Tensor) -> None:
        """Move towards the vectors [n, D] with ids [n]. `cluster_size` holds shares that sum to one."""
        embed, share, average = self.codebook.embed, self.codebook.cluster_size, self.codebook.embed_avg
        counts = torch.bincount(ids, minlength=len(embed)).float() / len(ids)
        sums = torch.zeros_like(embed).index_add_(0, ids, vectors) / len(ids)
        share.lerp_(counts, 1 - self.decay)
        average.lerp_(sums, 1 - self.decay)
        embed.copy_(average / share.clamp(min=1e-9)[:, None])
        dead = (share < 0.05 / len(embed)).nonzero()[:, 0]
        if len(dead):
            embed[dead] = vectors[torch.randint(len(vectors), (len(dead),))]
            share[dead] = 0.5 / len(embed)
            average[dead] = embed[dead] * share[dead, None]


def quantise(books: list[MovingCodebook], hidden: Tensor, train: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """hidden [B, D, T] -> (quantised, gradient straight through; commitment loss; ids by codebook)."""
    flat = hidden.transpose(1, 2).reshape(-1, hidden.shape[1])  # [B, D, T] -> [B T, D]
    residual, total, commitment, all_ids = flat, torch.zeros_like(flat), flat.new_zeros(()), []
    for book in books:
        ids = torch.cdist(residual.detach(), book.codebook.embed).argmin(1)
        chosen = book.codebook.embed[ids]
        commitment = commitment + (residual - chosen).square().mean()
        if train:
            book.update(residual.detach(), ids)
        total, residual = total + chosen, residual - chosen
        all_ids.append(ids)
    straight = flat + (total - flat).detach()
    return (
        straight.view(hidden.shape[0], -1, hidden.shape[1]).transpose(1, 2),
        commitment / len(books),
        all_ids,
    )


def losses(
    model: EncodecModel,
    books: list[MovingCodebook] | None,
    waveform: Tensor,
    train: bool,
    waveform_weight: float = 1.0,
) -> dict:
    hidden = model.encoder(waveform)
    commitment, ids = hidden.new_zeros(()), []
    if books is not None:
        hidden, commitment, ids = quantise(books, hidden, train)
    estimate = model.decoder(hidden)[..., : waveform.shape[-1]]
    mel = mel_distance(estimate[:, 0], waveform[:, 0])
    sdr = si_sdr_db(estimate[:, 0], waveform[:, 0]).clamp(max=30).mean()
    absolute = (estimate - waveform).abs().mean()
    return {
        "loss": mel + waveform_weight * (2.0 * absolute - 0.02 * sdr) + 0.1 * commitment,
        "mel": mel,
        "si_sdr_db": sdr,
        "commitment": commitment,
        "ids": ids,
    }


def perplexity(ids: Tensor, size: int = 2048) -> float:
    share = torch.bincount(ids, minlength=size).float() / len(ids)
    return math.exp(-(share * torch.log(share.clamp(min=1e-12))).sum().item())


@torch.no_grad()
def evaluate(model: EncodecModel, books: list[MovingCodebook] | None, music: np.ndarray) -> dict:
    """Mean distances and perplexities over the first 5 s of every held-out piece."""
    values: dict[str, list[float]] = {"mel": [], "si_sdr_db": []}
    ids: list[list[Tensor]] = []
    for piece in music:
        waveform = torch.from_numpy(piece[: 5 * SAMPLE_RATE].astype(np.float32) / 32768)[None, None]
        result = losses(model, books, waveform, train=False)
        values["mel"].append(result["mel"].item())
        values["si_sdr_db"].append(result["si_sdr_db"].item())
        ids.append(result["ids"])
    report = {name: round(float(np.mean(v)), 4) for name, v in values.items()}
    if books is not None:
        report["perplexity"] = [round(perplexity(torch.cat(k))) for k in zip(*ids, strict=True)]
    return report


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, level, then linear to a twentieth over the last 40 %."""
    falling = min(1.0, (steps - step) / (0.4 * steps))
    return peak * min(1.0, (step + 1) / warmup) * max(0.05, falling)


def save_checkpoint(path: Path, model, optimizer, step: int, quantised: bool) -> None:
    aside = path.with_suffix(".tmp")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "quantised": quantised,
    }
    torch.save(state, aside)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/pocket_codec"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--autoencoder-steps", type=int, default=400)
    parser.add_argument("--decoder-of", type=Path, help="a codec whose codes stay; only its decoder learns")
    parser.add_argument("--waveform-weight", type=float, default=1.0, help="of the waveform, beside its mel")
    parser.add_argument("--num-pieces", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(args.seed)
    train(args)


def train(args: argparse.Namespace) -> None:
    args.run_dir.mkdir(parents=True, exist_ok=True)
    music = load_music(args.run_dir / "music.npy", 0, args.num_pieces)
    held_out = load_music(args.run_dir / "held_out.npy", HELD_OUT_SEED, 16)
    step, quantised = 0, args.decoder_of is not None
    if quantised:
        model = EncodecModel.from_pretrained(args.decoder_of, dtype=torch.float32)
        model.encoder.requires_grad_(False)
    else:
        model = EncodecModel(pocket_codec_config())
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=args.lr, betas=(0.8, 0.99), weight_decay=1e-4)
    books = [MovingCodebook(layer.codebook) for layer in model.quantizer.layers[:4]]
    codes_learn = not quantised
    checkpoint = args.run_dir / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, quantised = state["step"], state["quantised"]
    log = (args.run_dir / "log.jsonl").open("a")
    started, first = time.time(), step
    while step < args.steps:
        if step >= args.autoencoder_steps and not quantised:
            start_codebooks(model, books, music, args)
            quantised = True
        batch = draw_batch(music, step, args.seed, args.batch_size, args.seconds)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        torch.manual_seed(args.seed * 1_000_003 + step)
        result = losses(model, books if quantised else None, batch, codes_learn, args.waveform_weight)
        optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0 or step == args.steps:
            row = {"step": step, "s_per_step": round((time.time() - started) / (step - first), 3)}
            row |= {k: round(result[k].item(), 4) for k in ("loss", "mel", "si_sdr_db", "commitment")}
            if step % 250 == 0 or step == args.steps:
                row["held_out"] = evaluate(model, books if quantised else None, held_out)
                save_checkpoint(checkpoint, model, optimizer, step, quantised)
                if quantised:
                    model.save_pretrained(args.run_dir / "codec")
            print(json.dumps(row), file=log, flush=True)
            print(json.dumps(row), flush=True)


@torch.no_grad()
def start_codebooks(model, books: list[MovingCodebook], music: np.ndarray, args: argparse.Namespace) -> None:
    """k-means, codebook after codebook, over the encoder's outputs for 60 batches."""
    batches = [draw_batch(music, 10**6 + i, args.seed, 16, args.seconds) for i in range(40)]
    residual = torch.cat(
        [model.encoder(b).transpose(1, 2).reshape(-1, model.config.hidden_size) for b in batches]
    )
    for book in books:
        book.start(residual)
        residual = residual - book.codebook.embed[torch.cdist(residual, book.codebook.embed).argmin(1)]
        book.codebook.inited.fill_(True)


if __name__ == "__main__":
    main()

"""What int8 features cost: their error, and the training loss of a small run on them, beside float16.

Run: python tools/bench_feature_codec.py SHARDS [--preset pocket] [--samples 64] [--steps 200] [--json FILE]
SHARDS is a folder of float16 shards. Samples of it are written anew in both forms, the scales measured as
`gvm-prep encode --feature-codec int8` measures them, and networks trained on either from the same start with
the same batches; one more with another seed tells how much a loss moves by chance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from gvmgen.config import model_config
from gvmgen.data import SegmentLoader, permutation
from gvmgen.model import GVMGen, code_loss
from pipeline.feature_scales import NUM_FRAMES, NUM_SEGMENTS
from shards.feature_codec import Int8Codec
from shards.reader import ShardSet
from shards.writer import write_shard

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--preset", default="pocket")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--crop-s", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    source = ShardSet.open(options.shards)
    order = permutation(len(source), 0, 0).tolist()
    codec = Int8Codec.calibrated(largest(source, order[-NUM_SEGMENTS:]))
    with tempfile.TemporaryDirectory() as folder:
        plain = copy(source, order[: options.samples], Path(folder) / "fp16", None)
        small = copy(source, order[: options.samples], Path(folder) / "int8", codec)
        figures = errors(plain, small)
        for name, shards, seed in (("fp16", plain, 0), ("int8", small, 0), ("fp16.other_seed", plain, 1)):
            figures[f"loss.{name}"] = train(shards, seed, options)
    for key, value in figures.items():
        print(f"{key:34} {value:10.6f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def largest(shards: ShardSet, indices: Iterable[int]) -> np.ndarray:
    """The largest magnitude of each channel, float [D], in the first frames of these samples."""
    found = []
    for index in indices:
        num_frames, *shape = shards.samples[index].record.fields["features.npy"].shape
        frames = np.empty((min(NUM_FRAMES, num_frames), *shape), np.float16)
        shards.read_features(index, frames)
        found.append(np.abs(frames).max((0, 1)))
    return np.stack(found).max(0)


def copy(source: ShardSet, indices: list[int], folder: Path, codec: Int8Codec | None) -> ShardSet:
    samples = (source.read(index) for index in indices)
    write_shard(folder, 0, samples, plan_hash="bench", fingerprint={}, feature_codec=codec)
    return ShardSet.open(folder)


def errors(plain: ShardSet, small: ShardSet) -> Figures:
    """Of all values of all samples, and of the channel that fares worst."""
    squares, noises, num_values = 0.0, 0.0, 0
    for index in range(len(plain)):
        exact, coded = (shards.read(index).features.astype(np.float32) for shards in (plain, small))
        squares = squares + (exact**2).sum((0, 1), dtype=np.float64)  # [F, P, D] -> [D]
        noises = noises + ((coded - exact) ** 2).sum((0, 1), dtype=np.float64)
        num_values += exact.size
    record = small.records[0][1]
    return {
        "int8.relative_rmse": float(np.sqrt(np.sum(noises) / np.sum(squares))),
        "int8.worst_channel_relative_rmse": float(np.sqrt(np.max(noises / squares))),
        "int8.saturated_share": record.num_saturated / num_values,
        "int8.bytes_fraction": record.tar_bytes / plain.records[0][1].tar_bytes,
    }


def train(shards: ShardSet, seed: int, options: argparse.Namespace) -> float:
    """Mean loss, in nats, of the last tenth of a run's steps."""
    torch.manual_seed(seed)
    model = GVMGen(model_config(options.preset)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr)
    loader = SegmentLoader(shards, batch_size=options.batch_size, seed=seed, crop_s=options.crop_s)
    losses = []
    for batch in islice(loader, options.steps):
        logits, mask = model(
            batch["features"].float(),
            batch["codes"],
            num_frames=batch["num_frames"],
            num_code_frames=batch["num_code_frames"],
        )
        loss = code_loss(logits, batch["codes"], mask)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return mean(losses[-max(1, options.steps // 10) :])


if __name__ == "__main__":
    main()

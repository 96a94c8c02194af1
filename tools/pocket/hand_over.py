"""Go on with a network after its picture encoder has changed: the same conditions, from the new features.

    python tools/pocket/hand_over.py --model gvmgen/pocket/model --data data/before --new data/after

The feature transformation learns to give, from what the new encoder makes of a video, what the model gives
from the old one's features. Both folders hold shards of the same videos. The decoder stays as it is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gvmgen.checkpoint import load_model, save_model
from gvmgen.model import GVMGen
from gvmgen.runs import find_model
from shards.reader import ShardSet

FRAMES = 6  # of a video at once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="a model's or a run's folder: what knew the old features"
    )
    parser.add_argument("--data", type=Path, required=True, help="its features")
    parser.add_argument("--new", type=Path, required=True, help="the new encoder's, of the same videos")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket_handed"))
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    teacher, info = load_model(find_model(args.model, Path("runs"), None), dtype=torch.float32)
    wanted = conditions_of(teacher, ShardSet.open(args.data / "shards", "train"))
    new = ShardSet.open(args.new / "shards", "train")
    student, _ = load_model(find_model(args.model, Path("runs"), None), dtype=torch.float32)
    hand_over(student, new, wanted, args.steps, args.lr, args.batch_size)
    save_model(args.out, student, replace(info, encoder_fingerprint=new.fingerprint))
    print(f"wrote {args.out}")


@torch.no_grad()
def conditions_of(model: GVMGen, shards: ShardSet) -> dict[str, Tensor]:
    """[F, dim] of each video, by its key."""
    samples = (shards.read(index) for index in tqdm(range(len(shards)), "old features"))
    return {sample.key: model.conditions(torch.from_numpy(sample.features)[None])[0] for sample in samples}


def hand_over(
    student: GVMGen, shards: ShardSet, wanted: dict[str, Tensor], steps: int, lr: float, batch_size: int
) -> None:
    """Regress conditions on stretches of videos; without dropout, which would blur them."""
    known = [index for index, ref in enumerate(shards.samples) if ref.record.key in wanted]
    deviation = torch.cat(list(wanted.values())).std(dim=0).square().mean()
    random = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(student.transformation.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.03)
    bar = tqdm(range(steps), "new features")
    for _ in bar:
        loss = torch.zeros(())
        for index in random.choice(known, batch_size, replace=False):
            sample = shards.read(index)
            start = int(random.integers(1, len(sample.features) - FRAMES + 1))
            features = torch.from_numpy(sample.features[start - 1 : start + FRAMES])[None]
            made = student.conditions(features[:, 1:], features[:, :1])[0]
            error = (made - wanted[sample.key][start : start + FRAMES]).square().mean() / deviation
            loss = loss + error / batch_size
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.transformation.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        bar.set_postfix(error=f"{loss.item():.3f}")  # of 1, the conditions' own variance


if __name__ == "__main__":
    main()

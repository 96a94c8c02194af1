"""Weights that know music and have never seen a picture: where the ablation's trainings start from.

    python tools/pocket/forget_pictures.py --model runs/pocket_short --out runs/ablation_start
    gvm-eval ablate --preset pocket --init runs/ablation_start …

The feature transformation and the decoder's cross-attention are drawn anew; the rest stays as it was trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gvmgen.checkpoint import load_model, save_model
from gvmgen.model import GVMGen
from gvmgen.runs import find_model


def forget_pictures(model: GVMGen, seed: int) -> None:
    torch.manual_seed(seed)
    fresh = GVMGen(model.config).state_dict()
    seeing = {name: fresh[name] for name in fresh if name.startswith("transformation") or "cross" in name}
    model.load_state_dict(model.state_dict() | seeing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model's or a run's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation_start"))
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    model, info = load_model(find_model(args.model, Path("runs"), None), dtype=torch.float32)
    forget_pictures(model, args.seed)
    save_model(args.out, model, info)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

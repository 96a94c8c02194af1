"""Give a trained network `frame_changes`, silent at first, so that training goes on from what it knows.

python tools/pocket/add_changes.py --model gvmgen/pocket/model --out runs/pocket_changes_init
gvm-train --preset pocket --init runs/pocket_changes_init …
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from gvmgen.checkpoint import load_model, save_model
from gvmgen.model import GVMGen
from gvmgen.runs import find_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model's or a run's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket_changes_init"))
    parser.add_argument("--dropout", type=float, default=0.0, help="the decoder's, against learning by heart")
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args()
    trained, info = load_model(find_model(args.model, Path("runs"), None), dtype=torch.float32)
    torch.manual_seed(args.seed)
    model = GVMGen(replace(trained.config, frame_changes=True, dropout=args.dropout))
    model.load_state_dict(model.state_dict() | trained.state_dict())
    save_model(args.out, model, info)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

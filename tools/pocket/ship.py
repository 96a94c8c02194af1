"""Put trained weights into the package: gvmgen/pocket/{clip,codec,model,evaluator}, fp16.

    python tools/pocket/ship.py --clip runs/pocket_clip/clip --codec runs/pocket_codec/codec
    python tools/pocket/ship.py --model runs/pocket_fresh_short/best
    python tools/pocket/ship.py --evaluator runs/pocket_eval

The encoders go first: shards, and so the network, are made with the very weights that ship.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from transformers import EncodecModel

from gvmgen.checkpoint import load_model, save_model
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.presets import POCKET_DIR
from gvmgen.evaluation.evaluator import load_evaluator, save_evaluator

LICENCE = "Apache-2.0"
SAMPLING = {"guidance": 8.0, "follow": 1.5}  # tools/pocket/README.md, "Music that the picture does not tell"
PROVENANCE = {
    "data": "synthetic pairs of video and music made by tools/pocket/corpus.py; nothing else",
    "instruments": "FluidR3 General MIDI sound font (MIT), through FluidSynth",
}


def ship_clip(source: Path, package: Path) -> None:
    """open_clip's folder is in fp16 already."""
    package.mkdir(parents=True, exist_ok=True)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copyfile(source / name, package / name)


def ship_codec(source: Path, package: Path) -> None:
    """Where only the decoder is another one, what was trained on the codes is told of it and goes on."""
    former = read_codec(package) if package.exists() else None
    read_codec(source).half().save_pretrained(package)
    if former is None or not gives_same_codes(former, read_codec(package)):
        return
    before, after = (
        AudioCodec(codec).fingerprint["weights_sha256"] for codec in (former, read_codec(package))
    )
    for name in ("model", "evaluator"):
        config = package.with_name(name) / "config.json"
        config.write_text(config.read_text().replace(before, after))


def read_codec(folder: Path) -> EncodecModel:
    return EncodecModel.from_pretrained(folder, dtype=torch.float32)


def gives_same_codes(one: EncodecModel, other: EncodecModel) -> bool:
    """Whether encoder and codebooks are the same; how the codebooks came about is no matter."""
    weights = [
        {
            name: tensor
            for name, tensor in codec.state_dict().items()
            if name.startswith("encoder.") or name.endswith("codebook.embed")
        }
        for codec in (one, other)
    ]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )


def ship_model(source: Path, package: Path) -> None:
    model, info = load_model(source, dtype=torch.float32)
    model.config = replace(model.config, dropout=0.0, anchor_s=0)  # the training's own
    shipped = replace(info, trained=True, licence=LICENCE, provenance=PROVENANCE, sampling=SAMPLING)
    save_model(package, model.half(), shipped)


def ship_evaluator(source: Path, package: Path) -> None:
    evaluator = load_evaluator(source)
    save_evaluator(package, evaluator.model, evaluator.info, torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ships = {"clip": ship_clip, "codec": ship_codec, "model": ship_model, "evaluator": ship_evaluator}
    for name in ships:
        parser.add_argument(f"--{name}", type=Path, help=f"the trained {name}'s folder")
    parser.add_argument("--package", type=Path, default=POCKET_DIR)
    args = parser.parse_args()
    for name, ship in ships.items():
        source = getattr(args, name)
        if source is not None:
            ship(source, args.package / name)
            print(f"{source} -> {args.package / name}")
    size = sum(file.stat().st_size for file in args.package.rglob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB of weights in {args.package}")


if __name__ == "__main__":
    main()

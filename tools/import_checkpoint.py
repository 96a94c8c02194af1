"""Bring weights of others into a model folder once: an official GVMGen checkpoint, or MusicGen to start from.

    python tools/import_checkpoint.py official/ models/official
    python tools/import_checkpoint.py facebook/musicgen-small models/start --preset small

Prints what became of every tensor. `gvm-gen --model` reads the first kind, `gvm-train --init` both.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from gvmgen.checkpoint import AUDIOCRAFT_CODEC, ModelInfo, official_info, save_model
from gvmgen.config import MODEL_PRESETS, model_config
from gvmgen.formats import audiocraft_file
from gvmgen.imports import (
    ImportReport,
    import_musicgen,
    import_official,
    is_official,
)
from gvmgen.start import MUSICGEN_LICENCE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: list[str] | None = None) -> None:
    """Parse, import, save, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder, state_dict.bin, or a MusicGen's hub id")
    parser.add_argument("folder", type=Path, help="the model folder to write; must not exist")
    parser.add_argument(
        "--preset", choices=list(MODEL_PRESETS), default="small", help="of MusicGen's new network"
    )
    parser.add_argument(
        "--keep-text-attention", action="store_true", help="take over MusicGen's cross-attention"
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the weights on disk")
    parser.add_argument("--seed", type=int, default=0, help="of MusicGen's new parts")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        parser.error(f"{options.folder} exists; name a new folder")
    try:
        report = import_into(options)
    except (ValueError, OSError) as error:
        parser.exit(3, f"{parser.prog}: {error}\n")
    print("\n".join(report.lines()))
    print(f"wrote {options.folder}")


def import_into(options: argparse.Namespace) -> ImportReport:
    """Make the model folder; it has its name only when it is whole."""
    path, dtype = Path(options.source), DTYPES[options.dtype]
    if path.exists() and is_official(path):
        model, report = import_official(path, dtype=dtype)
        info = official_info(model.config, path)
        info = replace(info, provenance=info.provenance | {"sha256": sha256(audiocraft_file(path))})
    else:
        torch.manual_seed(options.seed)
        model, report = import_musicgen(
            options.source, model_config(options.preset), keeps_text_attention=options.keep_text_attention
        )
        model.to(dtype)
        info = ModelInfo(
            preset=options.preset,
            licence=MUSICGEN_LICENCE,
            provenance={"imported_from": options.source, "format": "MusicGen"},
        )
    aside = options.folder.with_name(f".{options.folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if info.codec is not None:
        shutil.copyfile(info.codec, aside / AUDIOCRAFT_CODEC)
        info = replace(info, codec=AUDIOCRAFT_CODEC)
    save_model(aside, model, info)
    aside.rename(options.folder)
    return report


def sha256(path: Path) -> str:
    """A file's content in a word."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()

"""The options by which commands choose a model and where it runs. No torch."""

from __future__ import annotations

from typing import Annotated

import typer

from gvmgen.config import MODEL_PRESETS

PRESETS = ", ".join(MODEL_PRESETS)

Model = Annotated[
    str | None,
    typer.Option(
        help="A model's or a run's folder.",
        show_default="newest checkpoint in ./runs, else the model in the box",
    ),
]
Preset = Annotated[
    str | None, typer.Option(help=f"Take a model of this size: {PRESETS}. $GVM_PRESET sets it too.")
]
Runs = Annotated[str, typer.Option(help="Folder of all runs.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="a GPU where there is one")
]
Precision = Annotated[
    str, typer.Option(help="Of the decoding: auto (the fastest good one), fp32, bf16, int8.")
]

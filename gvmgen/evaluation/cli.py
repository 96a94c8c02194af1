"""The command `gvm-eval`. What a command does lies in a module of its own, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gvmgen.console import run
from gvmgen.encoders.presets import chosen_preset
from gvmgen.evaluation.config import EvaluatorTraining

eval_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
DEFAULTS = EvaluatorTraining()


def eval_main() -> None:
    run(eval_app, "gvm-eval")


@eval_app.callback()
def about() -> None:
    """Judge music for videos."""


@eval_app.command("train")
def train_command(
    data: Annotated[Path, typer.Option(help="Folder that holds shards/.")] = Path("data"),
    run: Annotated[Path, typer.Option(help="The run's folder; an unfinished one is gone on with.")] = Path(
        "runs/eval"
    ),
    preset: Annotated[
        str | None, typer.Option(help="Preset whose encoders made the shards. $GVM_PRESET sets it too.")
    ] = None,
    dim: Annotated[int, typer.Option(help="Shared width.")] = DEFAULTS.dim,
    num_layers: Annotated[int, typer.Option(help="Layers of each tower.")] = DEFAULTS.num_layers,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = DEFAULTS.steps,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = DEFAULTS.batch_size,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = DEFAULTS.lr,
    warmup_steps: Annotated[
        int, typer.Option(help="Steps in which the learning rate rises; a cosine follows.")
    ] = DEFAULTS.warmup_steps,
    seed: Annotated[int, typer.Option(min=0, help="Fixes weights, order, crops and dropout.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
) -> None:
    """Train the evaluation model on shards; then say CMR and TA on their test split, with controls.

    \b
    gvm-eval train --data data --run runs/eval
    """
    training = EvaluatorTraining(
        preset=chosen_preset(preset),
        dim=dim,
        num_layers=num_layers,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=warmup_steps,
        seed=seed,
    )
    from gvmgen.evaluation.training import train_evaluator

    train_evaluator(data, run, training, save_every=save_every)

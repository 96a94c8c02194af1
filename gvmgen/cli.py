"""The command `gvm-train`. Heavy imports wait until it runs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from gvmgen.config import MODEL_PRESETS, OPTIMIZERS, PARTS, TrainConfig
from gvmgen.console import run
from gvmgen.encoders.presets import chosen_preset

PRESETS = ", ".join(MODEL_PRESETS)

train_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def train_main() -> None:
    run(train_app, "gvm-train")


def _setting(name: str, text: str, *flags: str) -> Any:
    """An option that sets a field of TrainConfig; without it the configuration file or the default counts."""
    default = getattr(TrainConfig, name)
    flag = "--" + name.replace("_", "-")
    return typer.Option(
        *(flags or (flag,)), help=text, show_default=False if default is None else str(default)
    )


@train_app.command()
def train_command(
    context: typer.Context,
    data: Annotated[str | None, _setting("data", "Folder or URL (s3://…) that holds shards/.")] = None,
    runs: Annotated[str | None, _setting("runs", "Folder of all runs.")] = None,
    run: Annotated[str | None, _setting("run", "Name of this run; the preset's by default.")] = None,
    preset: Annotated[
        str | None,
        _setting("preset", f"Size of the network: {PRESETS}. $GVM_PRESET sets it too."),
    ] = None,
    init: Annotated[
        str | None, _setting("init", "Start from these weights: a model folder, a checkpoint, MusicGen's.")
    ] = None,
    train: Annotated[
        str | None, _setting("train", f"What learns, the rest is frozen: {', '.join(PARTS)}.")
    ] = None,
    lora: Annotated[
        int | None,
        _setting("lora", "Rank of adapters that learn instead of the decoder's weights; 0 none. Needs peft."),
    ] = None,
    lr: Annotated[float | None, _setting("lr", "Highest learning rate.")] = None,
    lr_decay: Annotated[
        float | None,
        _setting("lr_decay", "Each decoder layer learns this much slower than the one above it."),
    ] = None,
    weight_decay: Annotated[float | None, _setting("weight_decay", "AdamW's weight decay.")] = None,
    optimizer: Annotated[
        str | None,
        _setting("optimizer", f"{', '.join(OPTIMIZERS)}: a quarter of its memory, needs bitsandbytes."),
    ] = None,
    batch_size: Annotated[
        int | None, _setting("batch_size", "Segments an optimiser step, over all processes.")
    ] = None,
    epochs: Annotated[int | None, _setting("epochs", "Times to go through the data.")] = None,
    steps: Annotated[int | None, _setting("steps", "Optimiser steps; overrules --epochs.")] = None,
    warmup_steps: Annotated[
        int | None, _setting("warmup_steps", "Steps in which the learning rate rises; a cosine follows.")
    ] = None,
    guidance_dropout: Annotated[
        float | None, _setting("guidance_dropout", "Share of segments trained without their video.")
    ] = None,
    max_grad_norm: Annotated[
        float | None, _setting("max_grad_norm", "Clip the gradient's norm; 0 never clips.")
    ] = None,
    ema: Annotated[
        float | None,
        _setting("ema", "Decay of an average of the weights, which is what composes; 0 none. Try 0.999."),
    ] = None,
    crop_s: Annotated[
        float | None, _setting("crop_s", "Train on a random stretch of this many seconds of each segment.")
    ] = None,
    precision: Annotated[str | None, _setting("precision", "no (fp32), bf16, fp16 or auto.")] = None,
    seed: Annotated[int | None, _setting("seed", "Fixes weights, order, crops and dropout.")] = None,
    grad_accum: Annotated[
        int | None, _setting("grad_accum", "Cut each batch into this many pieces, for memory; same result.")
    ] = None,
    recompute: Annotated[
        bool | None,
        _setting(
            "recompute",
            "Forget activations and compute them again: less memory, a third slower.",
            "--recompute/--no-recompute",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        _setting("compile", "Run the decoder's layers through torch.compile.", "--compile/--no-compile"),
    ] = None,
    on_corrupt: Annotated[
        str | None, _setting("on_corrupt", "At a damaged segment: stop, or substitute the next one.")
    ] = None,
    save_every: Annotated[int | None, _setting("save_every", "Steps between checkpoints.")] = None,
    keep_last: Annotated[
        int | None, _setting("keep_last", "Checkpoints to keep, besides the best one.")
    ] = None,
    eval_every: Annotated[
        int | None, _setting("eval_every", "Steps between validations on the test split; 0 never.")
    ] = None,
    log_every: Annotated[int | None, _setting("log_every", "Steps between logged lines.")] = None,
    samples_every: Annotated[
        int | None,
        _setting("samples_every", "Steps between composed samples and pictures of attention; 0 never."),
    ] = None,
    tracker: Annotated[
        str | None, _setting("tracker", "Where curves go: tensorboard, any other of Accelerate's, none.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of these settings; flags overrule it.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although data or settings differ from the run's.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, settings and one step; write nothing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print parameters and memory, by part; needs no data.")
    ] = False,
) -> None:
    """Train GVMGen on the shards in ./data; resume where the run's folder has a checkpoint.

    \b
    gvm-train --preset pocket --steps 400
    accelerate launch gvm-train
    """
    flags = {
        name: value for name, value in context.params.items() if name in TrainConfig.__dataclass_fields__
    }
    from_flags = {name: value for name, value in flags.items() if value is not None}
    from_file = {} if config is None else _read_config(config)
    settings = TrainConfig.from_json({"preset": chosen_preset(None)} | from_file | from_flags)

    if estimate:
        from gvmgen.estimate import estimate_memory

        print(estimate_memory(settings))
        return
    from gvmgen import train as training  # `train` is a setting

    training.train(settings, accept_changes=accept_changes, dry_run=dry_run)


def _read_config(path: Path) -> dict[str, Any]:
    """Settings by name from a JSON or TOML file."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError as error:
        raise ValueError(f"--config {path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: holds no table of settings")
    return values

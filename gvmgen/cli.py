"""The commands `gvm-train` and `gvm-gen`. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from gvmgen.config import MODEL_PRESETS, TrainConfig
from gvmgen.console import run
from gvmgen.encoders.presets import chosen_preset

PRESETS = ", ".join(MODEL_PRESETS)
MUSIC_SUFFIXES = (".wav", ".mp4", ".mkv", ".mov")
SLOW_BAR_S = 10.0  # seconds between two lines of a progress bar that goes into a file

train_app = typer.Typer(add_completion=False, rich_markup_mode=None)
generate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def train_main() -> None:
    run(train_app, "gvm-train")


def generate_main() -> None:
    run(generate_app, "gvm-gen")


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
    data: Annotated[str | None, _setting("data", "Folder that holds shards/.")] = None,
    runs: Annotated[str | None, _setting("runs", "Folder of all runs.")] = None,
    run: Annotated[str | None, _setting("run", "Name of this run; the preset's by default.")] = None,
    preset: Annotated[
        str | None,
        _setting("preset", f"Size of the network: {PRESETS}. $GVM_PRESET sets it too."),
    ] = None,
    init: Annotated[
        str | None, _setting("init", "Start from these weights: a model folder, a checkpoint, MusicGen's.")
    ] = None,
    lr: Annotated[float | None, _setting("lr", "Highest learning rate.")] = None,
    weight_decay: Annotated[float | None, _setting("weight_decay", "AdamW's weight decay.")] = None,
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
    crop_s: Annotated[
        float | None, _setting("crop_s", "Train on a random stretch of this many seconds of each segment.")
    ] = None,
    precision: Annotated[str | None, _setting("precision", "no (fp32), bf16, fp16 or auto.")] = None,
    seed: Annotated[int | None, _setting("seed", "Fixes weights, order, crops and dropout.")] = None,
    grad_accum: Annotated[
        int | None, _setting("grad_accum", "Cut each batch into this many pieces, for memory; same result.")
    ] = None,
    save_every: Annotated[int | None, _setting("save_every", "Steps between checkpoints.")] = None,
    keep_last: Annotated[int | None, _setting("keep_last", "Checkpoints to keep.")] = None,
    eval_every: Annotated[
        int | None, _setting("eval_every", "Steps between validations on the test split; 0 never.")
    ] = None,
    log_every: Annotated[int | None, _setting("log_every", "Steps between logged lines.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON or TOML file of these settings; flags overrule it.")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although data or settings differ from the run's.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, settings and one step; write nothing.")
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

    from gvmgen.train import train

    train(settings, accept_changes=accept_changes, dry_run=dry_run)


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


@generate_app.command()
def generate_command(
    video: Annotated[Path, typer.Argument(help="The video.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Music (.wav), or the video with it (.mp4, .mkv, .mov).",
            show_default=False,
        ),
    ],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same music.")] = 0,
    duration: Annotated[
        float | None, typer.Option(help="Score only the first seconds.", show_default="all")
    ] = None,
    guidance: Annotated[float, typer.Option(help="How closely the music follows the video; 1 is off.")] = 3.0,
    top_k: Annotated[int, typer.Option(help="Draw among the likeliest codes; 0 among all.")] = 250,
    top_p: Annotated[float, typer.Option(help="Draw among codes of this probability mass; 0 is off.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Above 1 bolder, below 1 tamer.")] = 1.0,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model's or a run's folder.",
            show_default="newest checkpoint in ./runs, else the model in the box",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Take a model of this size: {PRESETS}. $GVM_PRESET sets it too.")
    ] = None,
    runs: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="a GPU where there is one")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the decoding: auto (the fastest good one), fp32, bf16, int8.")
    ] = "auto",
) -> None:
    """Compose music for a video, exactly as long as the video.

    \b
    gvm-gen video.mp4 -o out.wav
    gvm-gen video.mp4 -o film.mp4 --seed 7
    """
    _check_paths(video, output)
    with StageBar() as bar:  # before the imports, which take seconds
        bar("loading", 0, 1)
        from gvmgen.decoding import SamplingConfig
        from gvmgen.generate import Composer

        sampling = SamplingConfig(guidance=guidance, top_k=top_k, top_p=top_p, temperature=temperature)
        wanted = preset or (os.environ.get("GVM_PRESET") if model is None else None)
        composer = Composer.load(model, preset=wanted, runs=runs, device=device, precision=precision)
        bar("loading", 1, 1)
        if not composer.info.trained:
            bar.say("gvm-gen: this model is untrained: its music is noise. Train one: gvm-train")
        if "NC" in composer.info.licence:
            bar.say(f"gvm-gen: not for commercial use: the model's licence is {composer.info.licence}")
        music = composer.score(video, seed=seed, duration_s=duration, sampling=sampling, progress=bar)
        music.save(output)
    speed = music.duration_s / music.compose_s
    print(
        f"{output}: {music.duration_s:.2f} s of music in {music.compose_s:.1f} s ({speed:.2g}x real time), "
        f"seed {seed}, model {music.model}, decoded in {composer.engines.description}"
    )


def _check_paths(video: Path, output: Path) -> None:
    """Find what would fail at the end, before the work begins."""
    if output.suffix.lower() not in MUSIC_SUFFIXES:
        raise ValueError(f"-o {output}: unknown kind of file; known: {', '.join(MUSIC_SUFFIXES)}")
    if output.is_dir():
        raise ValueError(f"-o {output}: is a folder; name a file")
    if not output.parent.is_dir():
        raise ValueError(f"-o {output}: no folder {output.parent}. Make it: mkdir -p {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"-o {output}: no permission to write in {output.parent}")
    from gvmgen.encoders.probe import probe  # PyAV, no torch

    probe(video)
    if output.exists() and output.samefile(video):
        raise ValueError(f"-o {output}: is the video itself; name another file")


class StageBar:
    """One progress bar on stderr that shows each stage of the work in turn."""

    def __init__(self) -> None:
        interval = 0.1 if sys.stderr.isatty() else SLOW_BAR_S
        self.bar = tqdm(
            total=1,
            unit="",
            mininterval=interval,
            bar_format="{desc} {percentage:3.0f} %|{bar}| {n}/{total} [{elapsed}<{remaining}]",
        )
        self.stage = ""

    def __enter__(self) -> StageBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.bar.set_description_str(f"{stage:<9}", refresh=False)
            self.bar.reset(total)
        self.bar.update(done - self.bar.n)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.bar.write(line, file=sys.stderr)

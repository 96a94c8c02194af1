"""The command `gvm-eval`. What a command does lies in a module of its own, imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gvmgen.config import TrainConfig
from gvmgen.console import ExitCode, run
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
    data: Annotated[Path | None, typer.Option(help="Folder that holds shards/.", show_default="data")] = None,
    videos: Annotated[
        Path | None, typer.Option(help="In place of shards: a folder of videos, as for score.")
    ] = None,
    music: Annotated[
        Path | None, typer.Option(help="Their music, by name.", show_default="the videos' own")
    ] = None,
    run: Annotated[Path, typer.Option(help="The run's folder; an unfinished one is gone on with.")] = Path(
        "runs/eval"
    ),
    preset: Annotated[
        str | None,
        typer.Option(help="Whose encoders made the shards, or read the videos. $GVM_PRESET sets it too."),
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
    held_out: Annotated[
        int, typer.Option(min=0, help="Pairs of the train split to measure on, not to train on.")
    ] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although data or settings differ from the run's.")
    ] = False,
    soundfont: Annotated[Path | None, typer.Option(help="Instruments for MIDI, FILE.sf2.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read videos.", show_default="one a core")
    ] = None,
) -> None:
    """Train the evaluation model on shards, or on videos and music; then say CMR and TA on their test split,
    with controls.

    Of videos, 15 % by name are the test split; films are cut into pieces of 30 s. What was read is kept in
    RUN/training, so that a stopped command goes on. A broken file is named and left out; the exit code is 1.

    \b
    gvm-eval train --data data --run runs/eval
    gvm-eval train --videos videos --music music --run runs/eval
    """
    if videos is None and (music, soundfont) != (None, None):
        raise ValueError("--music and --soundfont go with --videos FOLDER; shards have their music in them")
    if videos is not None and data is not None:
        raise ValueError(f"--data {data} and --videos {videos}: name one of them")
    training = EvaluatorTraining(
        preset=chosen_preset(preset),
        dim=dim,
        num_layers=num_layers,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=warmup_steps,
        seed=seed,
        held_out=held_out,
    )
    from gvmgen.evaluation.sources import FolderPairs, ShardPairs
    from gvmgen.evaluation.training import train_evaluator

    cache = run / "training" / "seconds"
    source = (
        ShardPairs(data or Path("data"), training.preset, cache)
        if videos is None
        else FolderPairs(videos, music, training.preset, cache, soundfont=soundfont, workers=workers)
    )
    train_evaluator(source, run, training, save_every=save_every, accept_changes=accept_changes)
    if source.failures:
        raise typer.Exit(ExitCode.FAILED)


@eval_app.command("ablate")
def ablate_command(
    data: Annotated[Path, typer.Option(help="Folder that holds shards/.")] = Path("data"),
    evaluator: Annotated[Path, typer.Option(help="A model made by `gvm-eval train` on these shards.")] = Path(
        "runs/eval"
    ),
    out: Annotated[
        Path, typer.Option(help="Folder for runs and table; what is there is not made again.")
    ] = Path("ablation"),
    preset: Annotated[str | None, typer.Option(help="Size of the network. $GVM_PRESET sets it too.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A variant to train; again for more.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each.")] = 700,
    batch_size: Annotated[int, typer.Option(min=1, help="Segments a step.")] = 2,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    warmup_steps: Annotated[int, typer.Option(min=0, help="Steps in which the rate rises.")] = 70,
    crop_s: Annotated[
        float | None, typer.Option(help="Train on a random stretch of this many seconds.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="A model folder: variants start from those of its weights that fit.")
    ] = None,
    precision: Annotated[str, typer.Option(help="no (fp32), bf16, fp16 or auto.")] = "auto",
    pieces: Annotated[int, typer.Option(min=1, help="Composed for each test video; their mean counts.")] = 4,
    guidance: Annotated[float, typer.Option(help="How strongly they follow it; 1 is off.")] = 3.0,
) -> None:
    """Train and measure the publication's table 5: what each part of the network is worth.

    Variants: base, queries_1, queries_2, queries_4, queries_8, queries_32, sum, preserve, no_spatial,
    no_temporal, no_time_axis, video_level. The base has 16 queries, averaged, and a time axis.

    \b
    gvm-eval ablate --data data/pocket --preset pocket --init runs/pocket_init
    """
    base = TrainConfig(
        data=str(data),
        preset=chosen_preset(preset),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=warmup_steps,
        crop_s=crop_s,
        precision=precision,
        save_every=steps,
        eval_every=steps,
        keep_last=1,
    )
    from gvmgen.evaluation.ablation import VARIANTS, Ablation, ablate

    ablation = Ablation(
        base=base,
        evaluator=evaluator,
        out=out,
        variants=only or tuple(VARIANTS),
        num_seeds=seeds,
        num_pieces=pieces,
        guidance=guidance,
        init=init,
    )
    if ablate(ablation):
        print((out / "table.md").read_text(), end="")


@eval_app.command("score")
def score_command(
    videos: Annotated[Path, typer.Option(help="Folder of the videos.", show_default=False)],
    system: Annotated[
        list[str],
        typer.Option(
            help="NAME=FOLDER: a system's music, a file a video, named as it. Sound, video or MIDI.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Folder of the true music; the videos' own if it is in them.")
    ] = None,
    evaluator: Annotated[
        Path | None, typer.Option(help="A model made by `gvm-eval train`, for CMR and TA.")
    ] = None,
    embedder: Annotated[
        str, typer.Option(help="What FAD and its like listen with: encodec, clap=FOLDER, tagger=FOLDER.")
    ] = "encodec",
    out: Annotated[Path, typer.Option(help="Folder for the page, the tables, and what was measured.")] = Path(
        "scores"
    ),
    examples: Annotated[int, typer.Option(min=0, help="Videos to watch and hear on the page.")] = 6,
    soundfont: Annotated[Path | None, typer.Option(help="Instruments for MIDI, FILE.sf2.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
) -> None:
    """Hold any systems' music for the same videos side by side: a page, a table, and JSON.

    \b
    gvm-eval score --videos videos --system ours=out/ours --system cmt=out/cmt --reference videos
    """
    from gvmgen.evaluation.pairing import named_folder

    systems = [named_folder(option) for option in system]
    from gvmgen.evaluation.report import score_folders

    scores = score_folders(
        videos,
        systems,
        reference,
        out,
        embedder=embedder,
        evaluator=evaluator,
        examples=examples,
        soundfont=soundfont,
        workers=workers,
    )
    print(f"{out / 'report.html'}: {len(scores.systems)} systems, {len(scores.videos)} videos")
    for file, reason in scores.failures.items():
        print(f"left out: {file}: {reason}", file=sys.stderr)
    if scores.failures:
        raise typer.Exit(ExitCode.FAILED)


@eval_app.command("listen")
def listen_command(
    videos: Annotated[Path, typer.Option(help="Folder of the videos.", show_default=False)],
    system: Annotated[
        list[str], typer.Option(help="NAME=FOLDER: a system's music, as for score.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page; the key to it goes beside it.")] = Path("listen.html"),
    films: Annotated[int, typer.Option(min=1, help="Films a listener gets, each with every system.")] = 8,
    seconds: Annotated[float, typer.Option(min=1, help="Of each film, from its start.")] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Fixes the codes that hide the systems.")] = 0,
    soundfont: Annotated[Path | None, typer.Option(help="Instruments for MIDI, FILE.sf2.")] = None,
) -> None:
    """Make a listening test: one page, blind and in balanced order, that works without a server.

    \b
    gvm-eval listen --videos videos --system ours=out/ours --system cmt=out/cmt
    """
    from gvmgen.evaluation.pairing import named_folder

    systems = [named_folder(option) for option in system]
    from gvmgen.evaluation.listening import make_test

    print(
        make_test(
            videos,
            systems,
            out,
            films_per_listener=films,
            seconds=seconds,
            seed=seed,
            soundfont=soundfont,
        )
    )


@eval_app.command("listen-results")
def listen_results_command(
    results: Annotated[list[Path], typer.Argument(help="The listeners' files.", show_default=False)],
    key: Annotated[Path, typer.Option(help="The key that `gvm-eval listen` left.")] = Path("listen.key.json"),
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON, too.")] = None,
) -> None:
    """Means with 95 % intervals, significance and agreement, of all listeners, of experts, of others.

    \b
    gvm-eval listen-results answers/*.json --key listen.key.json
    """
    import json

    from gvmgen.evaluation.ratings import markdown, rate, to_json

    ratings = rate(results, key)
    print(markdown(ratings))
    if out is not None:
        out.write_text(json.dumps(to_json(ratings), indent=2, allow_nan=False) + "\n", encoding="utf-8")

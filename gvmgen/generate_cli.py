"""The command `gvm-gen`. Heavy imports wait until it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from gvmgen import options
from gvmgen.console import ExitCode, run
from gvmgen.fast import build
from gvmgen.jobs import Job, Outcome, check_work, find_work, json_line, seconds, table
from gvmgen.progress import StageBar

if TYPE_CHECKING:
    from gvmgen.finish.film import Original
    from gvmgen.finish.mastering import Ending

generate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def generate_main() -> None:
    signal.signal(signal.SIGTERM, _end)
    run(generate_app, "gvm-gen")


def _end(*_: object) -> None:
    """End as at ctrl-C: what is done is kept, and temporary files go."""
    raise SystemExit(128 + signal.SIGTERM)


@generate_app.command()
def generate_command(
    video: Annotated[Path, typer.Argument(help="The video, or a folder of videos.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Music (.wav, .flac, .mp3, .opus, .m4a), the film with it (.mp4, .mkv, .mov), or a folder.",
            show_default=False,
        ),
    ],
    suffix: Annotated[str, typer.Option(help="Kind of the files in an output folder.")] = ".wav",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same music.")] = 0,
    takes: Annotated[
        int, typer.Option(min=1, help="Compose several, of this and the next seeds; keep the best as output.")
    ] = 1,
    evaluator: Annotated[
        str | None,
        typer.Option(help="A run of gvm-eval train, to rank takes by.", show_default="the one in the box"),
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="Score from here on: seconds, or minutes:seconds.")
    ] = "0",
    stop: Annotated[
        str | None, typer.Option("--to", help="Score up to here.", show_default="the end")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Score only so many seconds.", show_default="all")
    ] = None,
    preview: Annotated[
        float | None, typer.Option(help="Only the first seconds of the same music, to hear them soon.")
    ] = None,
    continue_from: Annotated[
        str | None,
        typer.Option(help="Music or a film whose end to go on from, as `--ending cut` leaves it."),
    ] = None,
    ending: Annotated[str, typer.Option(help="fade, or cut: end with the last frame.")] = "fade",
    loudness: Annotated[
        str,
        typer.Option(help="LUFS, off, or that of spotify, youtube, tidal, apple, podcast, ebu, atsc."),
    ] = "-14",
    sample_rate: Annotated[
        int | None, typer.Option(help="Hz.", show_default="32000; films and .opus 48000")
    ] = None,
    stereo: Annotated[bool, typer.Option("--stereo", help="Two channels, the same on both.")] = False,
    original: Annotated[
        str, typer.Option(help="The film's own sound: drop, keep, or duck the music under speech.")
    ] = "drop",
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How closely the music follows the video; 1 is off.", show_default="the model's own, else 3"
        ),
    ] = None,
    follow: Annotated[
        float | None,
        typer.Option(
            help="How much each moment goes by its own frames, where the model has learned that; 0 is off.",
            show_default="the model's own, else 0",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Draw among the likeliest codes; 0 among all.", show_default="the model's own, else 250"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among codes of this probability mass; 0 is off.",
            show_default="the model's own, else 0",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Above 1 bolder, below 1 tamer.", show_default="the model's own, else 1"),
    ] = None,
    model: options.Model = None,
    preset: options.Preset = None,
    runs: options.Runs = "runs",
    device: options.Device = None,
    precision: options.Precision = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew instead of going on where a run was interrupted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each video.")] = False,
) -> None:
    """Compose music for a video, exactly as long as the video.

    \b
    gvm-gen video.mp4 -o out.wav
    gvm-gen video.mp4 -o film.mp4 --original duck --seed 7
    gvm-gen video.mp4 -o out.flac --takes 4
    gvm-gen holiday/ -o scores/ --suffix .mp3
    """
    chosen = {
        "guidance": guidance,
        "follow": follow,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
    }
    job = Job(
        seed=seed,
        takes=takes,
        start_s=seconds("--from", start),
        stop_s=None if stop is None else seconds("--to", stop),
        duration_s=duration,
        preview_s=preview,
        continue_from=continue_from,
        ending=cast("Ending", ending),  # checked with the rest of the mastering
        loudness=loudness,
        sample_rate=sample_rate,
        stereo=stereo,
        original=cast("Original", original),
        evaluator=evaluator,
        fresh=fresh,
        sampling={name: value for name, value in chosen.items() if value is not None},
    )
    work = find_work(video, output, suffix)
    check_work(job, work)
    outcomes: list[Outcome] = []
    with StageBar() as bar, told_if_cut_short(outcomes, as_json):
        bar("loading", 0, 1)  # the imports take seconds; what else does is begun beside them
        if device != "cuda":
            build.begin()
        if takes > 1:
            from gvmgen.evaluation.listener import listener

            listener()
        from gvmgen.batch import score_all
        from gvmgen.decoding import SamplingConfig
        from gvmgen.generate import Composer
        from gvmgen.resuming import check_place

        SamplingConfig(**job.sampling)  # refuses what cannot be before a model is loaded
        if not work.is_folder:
            check_place(work.pairs[0][1])
        wanted = preset or (os.environ.get("GVM_PRESET") if model is None else None)
        composer = Composer.load(model, preset=wanted, runs=runs, device=device, precision=precision)
        bar("loading", 1, 1)
        for warning in composer.warnings():
            bar.say(warning)
        for outcome in score_all(composer, job, work, bar):
            outcomes.append(outcome)
    report(outcomes, as_json)
    if any(outcome.error for outcome in outcomes):
        raise SystemExit(ExitCode.FAILED)


@contextmanager
def told_if_cut_short(outcomes: list[Outcome], as_json: bool) -> Iterator[None]:
    """What came of the videos before an end in between (a full disk, ctrl-C) is printed all the same."""
    try:
        yield
    except BaseException:
        if outcomes:
            report(outcomes, as_json)
        raise


def report(outcomes: list[Outcome], as_json: bool) -> None:
    """Print what came of each video."""
    print("\n".join(map(json_line, outcomes)) if as_json else table(outcomes))

"""The command `gvm-prep`. Heavy imports wait until a command runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gvmgen.console import ExitCode, run
from gvmgen.encoders.presets import DEFAULT_PRESET, ENCODER_PRESETS, chosen_preset

DEFAULT_SOURCE = Path("data/videos")
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="From videos to shards: crawl-manifest, then encode.",
)

DATA = Path("data")
Data = Annotated[Path, typer.Option(help="Folder of manifest.jsonl, plan.jsonl and shards/.")]


class Retry(StrEnum):
    none, transient, all = "none", "transient", "all"


class Cache(StrEnum):
    off, keep, until_packed = "off", "keep", "until-packed"


def main() -> None:
    run(app, "gvm-prep")


@app.command()
def crawl_manifest(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders, files or 'patterns/**/*.mp4'.", show_default=str(DEFAULT_SOURCE)),
    ] = None,
    out: Annotated[Path, typer.Option(help="The manifest, one row a segment.")] = Path("data/manifest.jsonl"),
    segment_s: Annotated[int, typer.Option(help="Seconds of a segment.")] = 30,
    stride_s: Annotated[int, typer.Option(help="Seconds from one segment's start to the next's.")] = 30,
    min_s: Annotated[float, typer.Option(help="Leave out pieces shorter than this.")] = 5.0,
    num_shards: Annotated[int, typer.Option(help="Shards that segments are dealt into by hash.")] = 100,
    test_share: Annotated[float, typer.Option(help="Share of source videos kept for testing.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Another seed, other videos in the test split.")] = 0,
    append: Annotated[bool, typer.Option("--append", help="Keep the manifest's sources, too.")] = False,
) -> None:
    """Find videos and cut them into segments: data/manifest.jsonl.

    \b
    gvm-prep crawl-manifest ~/videos
    gvm-prep crawl-manifest 'films/**/*.mkv' concert.mp4 --stride-s 15
    """
    from pipeline.crawl import CrawlConfig, crawl

    config = CrawlConfig(
        segment_s=segment_s,
        stride_s=stride_s,
        min_s=min_s,
        num_shards=num_shards,
        test_share=test_share,
        seed=seed,
    )
    print(crawl(sources or _default_sources(), out, config, append).summary(out))


@app.command()
def plan(data: Data = DATA) -> None:
    """Freeze which segments lie in which shard; the first encode does it, too.

    \b
    gvm-prep plan
    """
    from pipeline.folder import DataFolder, plan_summary

    folder = DataFolder(data)
    print(f"{folder.plan}: {plan_summary(folder.freeze_plan(folder.read_segments()).values())}")


@app.command()
def encode(
    shards: Annotated[str, typer.Option(help="0-99 or 3,7,10-12; all: every planned one.")] = "all",
    data: Data = DATA,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Encoders: {', '.join(ENCODER_PRESETS)}. $GVM_PRESET sets it too.",
            show_default=DEFAULT_PRESET,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="a GPU where there is one")
    ] = None,
    retry: Annotated[
        Retry, typer.Option(help="Which failures of earlier runs to try again.")
    ] = Retry.transient,
    force: Annotated[bool, typer.Option("--force", help="Make complete shards again.")] = False,
    cache: Annotated[
        Cache, typer.Option(help="Features in data/cache: none, for good, or until their shard is complete.")
    ] = Cache.until_packed,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> None:
    """Encode segments with CLIP and EnCodec into data/shards; a later run goes on where this one ended.

    \b
    gvm-prep encode --shards 0-99
    gvm-prep encode --preset pocket --dry-run
    """
    from pipeline.folder import DataFolder
    from pipeline.selection import EncodeConfig, foresee

    folder = DataFolder(data)
    config = EncodeConfig(
        preset=chosen_preset(preset),
        shards=shards,
        device=device,
        retry=retry.value,
        force=force,
        cache=cache.value,
    )
    if dry_run:
        print(foresee(folder, config))
        return
    from pipeline.run import encode as encode_data

    report = encode_data(folder, config)
    print("\n".join(report.lines(folder, config)))
    if report.num_failed:
        raise typer.Exit(ExitCode.FAILED)


def _default_sources() -> list[Path]:
    if not DEFAULT_SOURCE.is_dir():
        raise FileNotFoundError(
            f"{DEFAULT_SOURCE}: no such folder, and no other source was named. "
            "Put videos there, or name some: gvm-prep crawl-manifest FOLDER"
        )
    return [DEFAULT_SOURCE]

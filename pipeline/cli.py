"""The command `gvm-prep`. Heavy imports wait until a command runs."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gvmgen.console import ExitCode, run
from gvmgen.encoders.presets import DEFAULT_PRESET, ENCODER_PRESETS, chosen_preset

if TYPE_CHECKING:
    from pipeline.folder import DataFolder
    from pipeline.selection import EncodeConfig

DEFAULT_SOURCE = Path("data/videos")
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="From videos to shards: crawl-manifest, then encode.",
)

DATA = Path("data")
Data = Annotated[Path, typer.Option(help="Folder of manifest.jsonl, plan.jsonl and shards/.")]


Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Encoders: {', '.join(ENCODER_PRESETS)}. $GVM_PRESET sets it too.",
        show_default=DEFAULT_PRESET,
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda:1, cuda:0,cuda:1 …", show_default="every GPU, else the CPU")
]


class Retry(StrEnum):
    none, transient, all = "none", "transient", "all"


class EngineChoice(StrEnum):
    local, ray = "local", "ray"


class FeatureCodec(StrEnum):
    fp16, int8 = "fp16", "int8"


class Precision(StrEnum):
    fp32, bf16 = "fp32", "bf16"


class Cache(StrEnum):
    off, keep, until_packed = "off", "keep", "until-packed"


def main() -> None:
    run(app, "gvm-prep")


@app.command()
def crawl_manifest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, files, 'patterns/**/*.mp4', lists (.csv .tsv .jsonl .parquet), s3:// gs:// hf:// "
            "folders, URLs of files, videos, playlists and channels, and data sets: symmv:LIST "
            "muvi-sync:LIST aist:LIST tiktok:LIST ossl:",
            show_default=f"{DEFAULT_SOURCE}, and the lines of data/sources.txt",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The manifest, one row a segment.")] = Path("data/manifest.jsonl"),
    segment_s: Annotated[int, typer.Option(help="Seconds of a segment.")] = 30,
    stride_s: Annotated[int, typer.Option(help="Seconds from one segment's start to the next's.")] = 30,
    min_s: Annotated[float, typer.Option(help="Leave out pieces shorter than this.")] = 5.0,
    num_shards: Annotated[int, typer.Option(help="Shards that segments are dealt into by hash.")] = 100,
    test_share: Annotated[float, typer.Option(help="Share of source videos kept for testing.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Another seed, other videos in the test split.")] = 0,
    append: Annotated[bool, typer.Option("--append", help="Keep the manifest's sources, too.")] = False,
    published_splits: Annotated[
        bool, typer.Option("--published-splits", help="Use the splits that lists publish.")
    ] = False,
    cookies: Annotated[Path | None, typer.Option(help="Cookies for platforms, Netscape format.")] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch from private addresses and odd ports, too.")
    ] = False,
    max_gb: Annotated[float, typer.Option(help="Fetch no file larger than this.")] = 8.0,
    max_hours: Annotated[float, typer.Option(help="Fetch no platform's video longer than this.")] = 4.0,
) -> None:
    """Find videos and cut them into segments: data/manifest.jsonl.

    \b
    gvm-prep crawl-manifest ~/videos
    gvm-prep crawl-manifest 'films/**/*.mkv' concert.mp4 --stride-s 15
    gvm-prep crawl-manifest symmv:SymMV.csv https://example.org/film.mp4
    """
    from pipeline.crawl import crawl
    from pipeline.cutting import CrawlConfig
    from pipeline.download import Access, Limits
    from pipeline.filtering import decide_again

    if not (0 < max_gb < math.inf and max_hours > 0):
        raise ValueError(f"--max-gb {max_gb:g}, --max-hours {max_hours:g}: give numbers above 0")
    config = CrawlConfig(
        segment_s=segment_s,
        stride_s=stride_s,
        min_s=min_s,
        num_shards=num_shards,
        test_share=test_share,
        seed=seed,
        published_splits=published_splits,
    )
    limits = Limits(
        max_bytes=round(max_gb * 2**30), max_duration_s=max_hours * 3600, allow_private=allow_private
    )
    access = Access(limits=limits, cookies=cookies)
    found = crawl(sources or _default_sources(out), out, config, append, access)
    print(found.summary(out))
    if (decision := decide_again(out)) is not None:
        print(decision)


@app.command("filter")
def filter_segments(
    data: Data = DATA,
    score: Annotated[
        str, typer.Option(help="Filters to run: all, none, or some of silence,clipping,loudness,picture,…")
    ] = "all",
    keep: Annotated[
        str | None,
        typer.Option(
            help="'music > 0.8 and speech < 0.2 and text < 0.1'; default: what was chosen for you.",
            show_default="as the last time, else default",
        ),
    ] = None,
    tagger: Annotated[
        Path | None, typer.Option(help="Folder of an AudioSet tagger: scores music, singing, talking.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Segments to measure at a time.")] = 2,
) -> None:
    """Score segments (speech, text, silence, …) and keep those within thresholds; measured once, decided
    freely.

    \b
    gvm-prep filter
    gvm-prep filter --score none --keep 'speech < 0.1 and text < 0.02 and kind == "MV"'
    """
    from pipeline.filtering import FilterConfig, filter_manifest
    from pipeline.folder import DataFolder

    config = FilterConfig(score=score, keep=keep, tagger=tagger, num_threads=threads)
    found = filter_manifest(DataFolder(data), config)
    print(found.summary())
    if found.failed:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def report(
    data: Data = DATA,
    out: Annotated[
        Path | None,
        typer.Option(help="The page; report.json is written beside it.", show_default="DATA/report.html"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Segments to show with a picture and a waveform.")] = 24,
) -> None:
    """A picture of the set: one page of hours, lengths, scores, what was dropped and why, and samples.

    \b
    gvm-prep report
    """
    from pipeline.folder import DataFolder
    from pipeline.report import write_report

    print(write_report(DataFolder(data), out or data / "report.html", samples))


@app.command()
def plan(data: Data = DATA) -> None:
    """Freeze which segments lie in which shard; the first encode does it, too.

    \b
    gvm-prep plan
    """
    from pipeline.folder import DataFolder, plan_summary

    folder = DataFolder(data)
    with folder.read_segments() as rows:
        frozen = folder.freeze_plan(rows.in_order())
    print(f"{folder.plan}: {plan_summary(frozen.values())}")


@app.command()
def encode(
    shards: Annotated[
        str,
        typer.Option(
            help="0-99 or 3,7,10-12; 2/4: the second quarter; auto: this process's share, under Slurm, "
            "torchrun or MPI; all: every planned one."
        ),
    ] = "all",
    data: Data = DATA,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where shards go: s3://BUCKET/SET, gs://…, hf://…; noted in DATA for later runs.",
            show_default="DATA, or where an earlier run put them",
        ),
    ] = None,
    preset: Preset = None,
    device: Device = None,
    retry: Annotated[
        Retry, typer.Option(help="Which failures of earlier runs to try again.")
    ] = Retry.transient,
    force: Annotated[bool, typer.Option("--force", help="Make complete shards again.")] = False,
    cache: Annotated[
        Cache, typer.Option(help="Features in data/cache: none, for good, or until their shard is complete.")
    ] = Cache.until_packed,
    feature_codec: Annotated[
        FeatureCodec | None,
        typer.Option(
            help="How features lie in shards; int8 takes half the space.",
            show_default="as in the shards that are there, else fp16",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of CLIP.", show_default="as in the shards that are there, else bf16 on a GPU, fp32 on a CPU"
        ),
    ] = None,
    cache_gb: Annotated[
        float | None,
        typer.Option(help="Room for the cache; what was cached longest ago goes.", show_default="no limit"),
    ] = None,
    deadline_s: Annotated[float, typer.Option(help="Seconds for reading one segment's source.")] = 600.0,
    stop_after: Annotated[
        int, typer.Option(help="Stop when so many segments in a row fail at the same stage; 0 never.")
    ] = 20,
    engine: Annotated[
        EngineChoice, typer.Option(help="Where shards are made: this machine, or a Ray cluster.")
    ] = EngineChoice.local,
    task_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a Ray task.", show_default="up to 4")
    ] = None,
    task_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a Ray task.", show_default="1 where nodes have any")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> None:
    """Encode segments with CLIP and EnCodec into data/shards; a later run goes on where this one ended.

    \b
    gvm-prep encode --shards 0-99
    gvm-prep encode --out s3://bucket/set
    gvm-prep encode --preset pocket --dry-run
    """
    from pipeline.folder import DataFolder
    from pipeline.manifest import require_manifest
    from pipeline.place import own_share
    from pipeline.selection import EncodeConfig, foresee

    folder = DataFolder(data, home=out)
    config = EncodeConfig(
        preset=chosen_preset(preset),
        shards=own_share() if shards == "auto" else shards,
        device=device,
        retry=retry.value,
        force=force,
        cache=cache.value,
        stop_after=stop_after,
        precision=None if precision is None else precision.value,
        cache_gb=cache_gb,
        deadline_s=deadline_s,
        feature_codec=None if feature_codec is None else feature_codec.value,
        engine=engine.value,
        task_cpus=task_cpus,
        task_gpus=task_gpus,
    )
    if dry_run:
        print(foresee(folder, config))
        return
    if out is not None:
        require_manifest(folder.manifest)
        folder.settle(out)
    _encode(folder, config)


@app.command()
def slurm_script(
    data: Data = DATA,
    preset: Preset = None,
    elements: Annotated[int, typer.Option(min=1, help="Elements of the array.")] = 8,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of an element.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of an element.")] = 8,
    memory_gb: Annotated[int, typer.Option(min=1, help="Memory of an element.")] = 32,
    hours: Annotated[int, typer.Option(min=1, help="Time of an element.")] = 24,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
) -> None:
    """Print a submit script for Slurm: an array whose elements share out the shards.

    \b
    gvm-prep slurm-script --elements 16 > encode.sbatch
    """
    from pipeline.slurm import SlurmConfig
    from pipeline.slurm import slurm_script as script

    config = SlurmConfig(
        data=data,
        preset=chosen_preset(preset),
        elements=elements,
        gpus=gpus,
        cpus=cpus,
        memory_gb=memory_gb,
        hours=hours,
        partition=partition,
    )
    print(script(config), end="")


@app.command()
def status(data: Data = DATA) -> None:
    """Say how far the shards are: complete, missing, failed and why, the time that remains.

    \b
    gvm-prep status
    """
    from pipeline.folder import DataFolder
    from pipeline.status import status as look

    folder = DataFolder(data)
    print("\n".join(look(folder).lines(folder)))


@app.command()
def repair(
    data: Data = DATA,
    deep: Annotated[
        bool, typer.Option("--deep", help="Look for broken bytes, too, as verify --deep.")
    ] = False,
    preset: Preset = None,
    device: Device = None,
) -> None:
    """Make what is missing or broken, and no more: sound samples of a broken shard stay.

    \b
    gvm-prep repair --deep
    """
    from pipeline.folder import DataFolder
    from pipeline.selection import EncodeConfig
    from pipeline.verification import set_aside_broken

    folder = DataFolder(data)
    broken = set_aside_broken(folder, deep)
    _encode(folder, EncodeConfig(preset=chosen_preset(preset), device=device, mend=broken))


@app.command()
def verify(
    data: Annotated[
        str, typer.Option(help="Folder that holds shards/, or the URL of one in an object store.")
    ] = str(DATA),
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare its checksums.")] = False,
) -> None:
    """Prove that the complete shards are sound; names each shard and sample that is not.

    \b
    gvm-prep verify
    gvm-prep verify --deep
    gvm-prep verify --data s3://bucket/set
    """
    from pipeline.folder import DataFolder
    from pipeline.verification import verify as prove

    num_shards, problems = prove(DataFolder(Path(data), home=data if "://" in data else None), deep)
    for problem in problems:
        print(problem)
    print(f"{data}: {num_shards} shards looked at, {len(problems)} problems")
    if problems:
        raise typer.Exit(ExitCode.FAILED)


def _encode(folder: DataFolder, config: EncodeConfig) -> None:
    from pipeline.manifest import require_manifest

    require_manifest(folder.manifest)  # before what takes seconds to import
    from pipeline.run import encode as encode_data

    try:
        report = encode_data(folder, config)
    except KeyboardInterrupt:
        print("gvm-prep: interrupted; the same command goes on where this one ended", file=sys.stderr)
        raise
    print("\n".join(report.lines(folder, config)))
    if report.num_failed:
        raise typer.Exit(ExitCode.FAILED)


def _default_sources(out: Path) -> list[str]:
    """data/videos, where it is; else sources.txt beside the manifest has to name some."""
    if DEFAULT_SOURCE.is_dir():
        return [str(DEFAULT_SOURCE)]
    if (out.parent / "sources.txt").is_file():
        return []
    raise FileNotFoundError(
        f"{DEFAULT_SOURCE}: no such folder, and no other source was named. "
        "Put videos there, or name some: gvm-prep crawl-manifest FOLDER"
    )

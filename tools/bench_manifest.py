"""How long a manifest of a million rows takes to write, filter, report and plan, and how much memory.

    python tools/bench_manifest.py --rows 1000000

Each stage is a process of its own, so that its peak memory is its own. Files, scores and prints are made up,
a file for each row, which is the hardest case; all else is what the commands run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pipeline.manifest import Source

PRINT_SIZE, NUM_FRAMES = 240, 30  # of a segment of 30 s


def crawl(data: Path, num_rows: int) -> None:
    """All of a crawl but fetching and opening files."""
    from pipeline.crawl import crawl
    from pipeline.cutting import CrawlConfig
    from pipeline.fetch import Fetched
    from pipeline.offers.candidate import Candidate, Offer
    from pipeline.sources import Look

    def offers(*_: object) -> Iterator[Offer]:
        for i in range(num_rows):
            groups = (f"song:{i // 3}",)
            yield Candidate(
                location=f"/videos/{i:07d}.mp4", origin="a list", source_name="made", kind="MV", groups=groups
            )

    def fetch(_: object, offer: Candidate) -> Fetched:
        return Fetched(offer, Path(offer.location), {})

    def look_at_all(names: Iterable[tuple[str, Look | None]], _: Path) -> Iterator[tuple[Look, bool]]:
        for number, (name, known) in enumerate(names):
            yield known or made_source(name, number), known is None

    with (
        patch("pipeline.crawl.read_offers", offers),
        patch("pipeline.fetch.Fetcher.fetch", fetch),
        patch("pipeline.crawl.look_at_all", look_at_all),
    ):
        print(crawl([], data / "manifest.jsonl", CrawlConfig()).summary(data / "manifest.jsonl"))


def made_source(name: str, number: int) -> Source:
    return Source(
        source=name,
        source_size=number,
        source_mtime_ns=1_700_000_000_000_000_000 + number,
        source_sha256=hashlib.sha256(name.encode()).hexdigest(),
        source_duration_s=30.0,
    )


def make_scores(data: Path, num_rows: int) -> None:
    """Scores and prints as the filters write them; every thousandth segment is the one before again."""
    from pipeline.filters.fingerprint import encode
    from pipeline.jsonl import read_rows, to_line

    random = np.random.default_rng(0)
    sound, frames = (
        random.integers(0, 1 << 32, PRINT_SIZE, np.uint32),
        random.integers(0, 1 << 63, NUM_FRAMES),
    )
    with (data / "scores.jsonl").open("w") as file:
        for number, row in enumerate(read_rows(data / "manifest.jsonl")):
            if number % 1000:
                sound = random.integers(0, 1 << 32, PRINT_SIZE, np.uint32)
                frames = random.integers(0, 1 << 63, NUM_FRAMES)
            scores = dict(
                zip(("speech", "silence", "text", "black", "static"), random.random(5).round(3), strict=True)
            )
            prints = {"sound_print": encode(sound), "picture_print": encode(frames)}
            file.write(to_line({"key": row["key"], "filters": {"silence": 1}, "scores": scores | prints}))


def filter_rows(data: Path, _: int) -> None:
    from pipeline.filtering import FilterConfig, filter_manifest
    from pipeline.folder import DataFolder

    print(
        filter_manifest(DataFolder(data), FilterConfig(score="none", keep="speech < 0.9 and duplicate == 0"))
    )


def report(data: Path, _: int) -> None:
    from pipeline.folder import DataFolder
    from pipeline.report import write_report

    write_report(DataFolder(data), data / "report.html", num_samples=0)


def plan(data: Path, _: int) -> None:
    from pipeline.folder import DataFolder, plan_summary
    from pipeline.manifest import read_manifest

    folder = DataFolder(data)
    print(plan_summary(folder.freeze_plan(read_manifest(folder.manifest)).values()))


STAGES: dict[str, Callable[[Path, int], None]] = {
    "crawl": crawl,
    "crawl again": crawl,
    "make-scores": make_scores,  # not a stage of the program
    "filter": filter_rows,
    "report": report,
    "plan": plan,
    "plan again": plan,
}


def run_stage(name: str, data: Path, num_rows: int) -> None:
    start_s = time.monotonic()
    STAGES[name](data, num_rows)
    figures = {
        "stage": name,
        "seconds": round(time.monotonic() - start_s, 1),
        "cpu_seconds": round(time.process_time(), 1),  # the honest figure where the machine is shared
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="a folder to keep; a temporary one otherwise")
    parser.add_argument("--stage", choices=STAGES, help="run this stage only, in this process")
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.data, arguments.rows)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = str(arguments.data or scratch)
        for stage in STAGES:
            command = [
                sys.executable,
                __file__,
                "--stage",
                stage,
                "--data",
                data,
                "--rows",
                str(arguments.rows),
            ]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

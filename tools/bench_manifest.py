"""How long a manifest of a million rows takes to write, filter, report and plan, and how much memory.

    python tools/bench_manifest.py --rows 1000000

Each stage is a process of its own, so that its peak memory is its own. Sources, scores and prints are made
up; all
else is what the commands run.
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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SEGMENTS_PER_SOURCE = 10
PRINT_SIZE, NUM_FRAMES = 240, 30  # of a segment of 30 s


def crawl(data: Path, num_rows: int) -> None:
    """Cut made-up sources into segments and write the manifest: all of a crawl but opening files."""
    from pipeline.crawl import Crawl, CrawlConfig, _deal, _write
    from pipeline.manifest import Source

    def sources() -> Iterator[Source]:
        for number in range(num_rows // SEGMENTS_PER_SOURCE):
            yield Source(
                source=f"videos/{number:07d}.mp4",
                source_size=number,
                source_mtime_ns=number,
                source_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
                source_duration_s=30.0 * SEGMENTS_PER_SOURCE,
                about={"source_name": "made", "kind": "MV", "groups": [f"song:{number // 3}"]},
            )

    found = Crawl(num_files=num_rows)
    _deal(list(sources()), CrawlConfig(), found)
    _write(found, data / "manifest.jsonl")


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
    from pipeline.folder import DataFolder

    folder = DataFolder(data)
    folder.freeze_plan(folder.read_segments())


STAGES: dict[str, Callable[[Path, int], None]] = {
    "crawl": crawl,
    "make-scores": make_scores,  # not a stage of the program
    "filter": filter_rows,
    "report": report,
    "plan": plan,
}


def run_stage(name: str, data: Path, num_rows: int) -> None:
    start_s = time.monotonic()
    STAGES[name](data, num_rows)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {"stage": name, "seconds": round(time.monotonic() - start_s, 1), "peak_gb": round(peak_gb, 2)}
        )
    )


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

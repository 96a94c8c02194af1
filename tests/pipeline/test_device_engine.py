"""Encoding on several devices of one machine: a process each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gvmgen.console import ExitCode
from gvmgen.encoders.presets import ENCODER_PRESETS
from pipeline.crawl import CrawlConfig, crawl
from pipeline.device_engine import own_devices
from tests.pipeline.made_videos import make_video

PATIENCE_S = 600  # a guard against hanging, no measure
FOUR_OF_EIGHT = {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "5"}


@pytest.mark.parametrize(
    ("asked", "num_gpus", "environ", "devices"),
    [
        ("cpu", 8, {}, ["cpu"]),
        ("cuda:1,cuda:3", 8, {}, ["cuda:1", "cuda:3"]),
        (None, 0, {}, ["cpu"]),
        (None, 0, FOUR_OF_EIGHT, ["cpu"]),
        (None, 3, {}, ["cuda:0", "cuda:1", "cuda:2"]),
        (None, 8, FOUR_OF_EIGHT, ["cuda:5"]),
        (None, 1, FOUR_OF_EIGHT, ["cuda:0"]),  # Slurm shows each process its own GPU only
    ],
)
def test_a_process_takes_the_devices_that_are_its_own(
    asked: str | None,
    num_gpus: int,
    environ: dict[str, str],
    devices: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert own_devices(asked) == devices


def start(data: Path, device: str) -> subprocess.Popen[str]:
    """With one thread a process: the number of threads shows in the last bit."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "encode", "--data", str(data)]
    return subprocess.Popen(
        [*command, "--preset", "pocket", "--device", device],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def written(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "shards").glob("0*")}


def writer_at_work(data: Path) -> int:
    """The process that is writing a shard at this moment."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for aside in (data / "shards").glob(".*.tar.*.tmp"):
            return int(aside.name.split(".")[-2])
        time.sleep(0.002)
    raise AssertionError("no worker began a shard")


@pytest.mark.slow
def test_two_workers_make_what_one_process_makes_and_a_killed_one_costs_a_shard_at_most(
    tmp_path: Path,
) -> None:
    if not Path(ENCODER_PRESETS["pocket"].codec).is_dir():
        pytest.skip("pocket's weights are not in this checkout")
    alone = tmp_path / "alone"
    make_video(alone / "videos" / "a.mp4", 6)
    crawl(
        [alone / "videos"],
        alone / "manifest.jsonl",
        CrawlConfig(segment_s=1, stride_s=1, min_s=1.0, num_shards=4),
    )
    together = Path(shutil.copytree(alone, tmp_path / "together"))

    process = start(together, "cpu,cpu")
    os.kill(writer_at_work(together), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == ExitCode.SYSTEM
    assert "a worker process died" in errors.splitlines()[-1]

    for data, device in ((together, "cpu,cpu"), (alone, "cpu")):
        process = start(data, device)
        assert process.wait(PATIENCE_S) == ExitCode.OK, process.communicate()[1]
    assert written(together) == written(alone)

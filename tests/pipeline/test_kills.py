"""Real processes: killed at any moment, two at once, and on a disk that fills up."""

from __future__ import annotations

import os
import random
import shutil
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from pipeline.folder import DataFolder
from tests.pipeline.encode_runs import Bytes, run, start, written

NUM_KILLS = 20


def entries(folder: Path) -> set[str]:
    return {f"{root}/{name}" for root, folders, files in os.walk(folder) for name in folders + files}


def kill_after(num_changes: int, process: ForkServerProcess, folder: Path) -> bool:
    """SIGKILL once so many files came or went; False where the process ended before."""
    seen = entries(folder)
    while process.is_alive():
        time.sleep(0.002)  # leaves the core to the process
        now = entries(folder)
        num_changes -= len(now ^ seen)
        seen = now
        if num_changes <= 0:
            process.kill()
            process.join()
            return True
    assert process.exitcode == 0
    return False


@pytest.mark.slow
def test_killed_at_20_random_points_the_bytes_are_those_of_an_uninterrupted_run(
    data: DataFolder, uninterrupted: Bytes
) -> None:
    moments = random.Random(0)
    kills = 0
    while kills < NUM_KILLS:
        if kill_after(moments.randint(1, 16), start(data), data.root):
            kills += 1
        else:  # it was quicker than the kill: once more from the beginning
            assert written(data) == uninterrupted
            shutil.rmtree(data.shards)
    run(data)
    assert written(data) == uninterrupted
    assert not list(data.shards.glob(".*.tmp"))


def test_two_processes_share_the_work_and_spoil_nothing(data: DataFolder, uninterrupted: Bytes) -> None:
    pair = [start(data), start(data)]
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert written(data) == uninterrupted

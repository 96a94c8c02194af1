"""Sound measured in a process beside this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from gvmgen.evaluation.listener import Listener
from gvmgen.evaluation.sound import Course, measure_course

MUSIC = np.random.default_rng(0).standard_normal(96_000).astype(np.float32) * np.linspace(
    0, 0.5, 96_000, dtype=np.float32
)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.process.kill()
    listener.process.wait()


def same(a: Course, b: Course) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_it_hears_what_this_process_hears(listener: Listener) -> None:
    assert same(listener.course(MUSIC), measure_course(MUSIC))
    assert same(listener.course(MUSIC[:40_000]), measure_course(MUSIC[:40_000]))
    assert listener.process.poll() is None


def test_when_it_was_killed_this_process_hears_instead(listener: Listener) -> None:
    listener.course(MUSIC)
    listener.process.kill()
    listener.process.wait()
    assert same(listener.course(MUSIC), measure_course(MUSIC))


def test_it_ends_with_its_parent_however_that_ends() -> None:
    script = (
        "from gvmgen.evaluation.listener import listener; print(listener().process.pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=60)
    assert not child.is_running()

"""A real disk that fills up: nothing is lost, nothing half-written is left, and one line says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.folder import DataFolder
from tests.pipeline.encode_runs import Bytes, written

FULL_DISK = Path(__file__).with_name("full_disk.py")
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder on which a test may mount a disk, in a namespace of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare(1), to mount a small disk")
    if tried.returncode:
        pytest.skip(f"may not mount a small disk here: {tried.stderr.strip()}")
    return folder


def on_small_disk(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OWN_MOUNTS, *command], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("cache", ["off", "until-packed"])
def test_a_disk_that_fills_up_half_way_costs_nothing(
    data: DataFolder, disk: Path, uninterrupted: Bytes, cache: str
) -> None:
    done = on_small_disk(sys.executable, str(FULL_DISK), str(data.root), str(disk), cache)
    assert done.returncode == 0, done.stderr
    assert "Make room" in done.stdout  # seen by the look before a shard, or by the write itself
    assert written(data) == uninterrupted


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(data: DataFolder, disk: Path) -> None:
    encode = "from pipeline.cli import main; main()"
    script = (
        f"mount -t tmpfs -o size=10m none {disk} && cp -r {data.root} {disk}/data && cd {disk} && "
        f"{sys.executable} -c '{encode}' encode --preset pocket --device cpu; "
        "status=$?; find data -name '*.tar*' | wc -l; exit $status"
    )
    done = on_small_disk("sh", "-c", script)
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "GB are free. Make room and run again" in done.stderr
    assert done.stdout.split() == ["0"]

"""`gvm-prep encode --engine ray` on a real cluster of three nodes, each a set of processes on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gvmgen.console import ExitCode
from gvmgen.encoders.presets import ENCODER_PRESETS
from pipeline.crawl import CrawlConfig, crawl
from shards.reader import ShardSet
from tests.pipeline.made_videos import make_video

ray = pytest.importorskip("ray", reason="needs the extra: pip install 'gvmgen[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.slow
NUM_SHARDS = 6
LIMIT_S = 900  # s; a guard against hanging, no measure


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path(ENCODER_PRESETS["pocket"].codec).is_dir():
        pytest.skip("pocket's weights are not in this checkout")
    root = tmp_path_factory.mktemp("crawled") / "data"
    make_video(root / "videos" / "a.mp4", 24)
    crawl(
        [root / "videos"],
        root / "manifest.jsonl",
        CrawlConfig(segment_s=2, stride_s=1, min_s=1.0, num_shards=NUM_SHARDS),
    )
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two more nodes, one processor each."""
    cluster = Cluster()
    for _ in range(3):
        add_node(cluster)
    yield cluster
    cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    """Ray gives up on a node whose helpers take more than 15 s to start: a busy machine needs another try."""
    for tries_left in (2, 1, 0):
        try:
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
        except Exception:  # Ray raises nothing narrower
            if not tries_left:
                raise
        else:
            return


def encode(data: Path, *arguments: str, address: str = "") -> subprocess.Popen[str]:
    """The command, in a process of its own, with one thread: the number of threads shows in the last bit."""
    command = "from pipeline.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "encode", "--data", str(data), "--preset", "pocket", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it said, once it has succeeded."""
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == ExitCode.OK, errors
    return output


def written(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "shards").iterdir() if path.suffix != ".lock"}


def node_at_work(cluster: Cluster, data: Path) -> Any:
    """A node, not the head, whose worker is writing a shard at this moment."""
    raylets = {n.all_processes["raylet"][0].process.pid: n for n in cluster.worker_nodes}
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for aside in (data / "shards").glob(".*.tar.*.tmp"):
            found = raylets.keys() & set(ancestors(int(aside.name.split(".")[-2])))
            if found:
                return raylets[found.pop()]
        time.sleep(0.01)
    raise AssertionError("no node began a shard")


def ancestors(pid: int) -> Iterator[int]:
    with suppress(FileNotFoundError):  # it has just ended
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            yield pid


def test_a_cluster_that_loses_a_node_makes_every_shard_as_one_machine_does(
    crawled: Path, cluster: Cluster, tmp_path: Path
) -> None:
    alone, together = (Path(shutil.copytree(crawled, tmp_path / name)) for name in ("alone", "together"))
    process = encode(together, "--engine", "ray", address=cluster.address)
    cluster.remove_node(node_at_work(cluster, together), allow_graceful=False)
    assert f"{NUM_SHARDS} shards made, 0 complete before" in finish(process)
    finish(encode(alone, "--device", "cpu"))
    assert written(together) == written(alone)
    assert len(ShardSet.open(together / "shards")) == 23
    again = finish(encode(together, "--engine", "ray", address=cluster.address))
    assert f"0 shards made, {NUM_SHARDS} complete before" in again


def test_an_error_of_a_task_reaches_the_user_in_one_line(
    crawled: Path, cluster: Cluster, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(crawled, tmp_path / "data"))
    shutil.rmtree(data / "videos")
    process = encode(data, "--engine", "ray", "--stop-after", "3", address=cluster.address)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == ExitCode.INPUT
    assert "3 segments in a row failed at the stage 'source'" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("address", "arguments", "words"),
    [
        ("127.0.0.1:1", [], ["127.0.0.1:1: no Ray cluster answers there", "ray start --head"]),
        (None, ["--task-cpus", "64"], ["no node of the Ray cluster has 64 CPUs", "--task-cpus"]),
    ],
)
def test_a_cluster_that_cannot_do_it_is_told_with_the_way_out(
    crawled: Path, cluster: Cluster, address: str | None, arguments: list[str], words: list[str]
) -> None:
    process = encode(crawled, "--engine", "ray", *arguments, address=address or cluster.address)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (ExitCode.INPUT, ExitCode.SYSTEM)
    assert all(word in errors.splitlines()[-1] for word in words)

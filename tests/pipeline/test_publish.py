"""Shards made here, whose home is an object store: what a kill, another machine and a lost server cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gvmgen.encoders.presets import ENCODER_PRESETS
from pipeline.crawl import CrawlConfig, crawl
from pipeline.folder import DataFolder
from pipeline.publish import publish
from pipeline.run import Report, encode
from pipeline.selection import EncodeConfig
from pipeline.status import status
from pipeline.verification import set_aside_broken, verify
from shards.reader import ShardSet
from shards.record import ShardRecord
from shards.remote import RemotePath, StoreError, shards_of
from shards.sample_cache import sample_cache
from shards.spec import ShardBusyError, ShardError, record_path, tar_path
from shards.writer import write_shard
from tests.made_store import BUCKET, Store, serving_s3
from tests.pipeline.made_videos import make_video
from tests.samples import FINGERPRINT, make_sample

CONFIG = EncodeConfig(preset="pocket", device="cpu")
SAMPLES = [make_sample("a"), make_sample("b")]
KILLED_BEFORE_THE_RECORD = """
import os, signal, sys
from pathlib import Path
from pipeline.publish import publish
from shards.record import ShardRecord
from shards.remote import RemotePath, shards_of

RemotePath.write_bytes = lambda path, data: os.kill(os.getpid(), signal.SIGKILL)
staging = Path(sys.argv[1])
publish(ShardRecord.load(staging / "000000.json"), staging, shards_of(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving_s3() as store:
        yield store


@pytest.fixture
def url(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a data set in the store; samples that are read from it are kept in a cache of their own."""
    monkeypatch.setenv("GVM_CACHE", str(tmp_path / "samples"))
    sample_cache.cache_clear()
    yield f"s3://{BUCKET}/{tmp_path.name}"
    sample_cache.cache_clear()


@pytest.fixture
def home(url: str) -> RemotePath:
    home = shards_of(url)
    assert isinstance(home, RemotePath)
    return home


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """A folder with one shard that was just made."""
    write_shard(tmp_path / "shards", 0, SAMPLES, plan_hash="plan", fingerprint=FINGERPRINT)
    return tmp_path / "shards"


def record(staging: Path) -> ShardRecord:
    return ShardRecord.load(record_path(staging, 0))


def test_a_published_shard_is_there_as_it_was_made_and_no_longer_here(
    staging: Path, home: RemotePath
) -> None:
    made = {path.name: path.read_bytes() for path in staging.glob("0*")}
    publish(record(staging), staging, home)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == made
    assert not list(staging.iterdir())


def test_a_writer_killed_between_the_tar_and_the_record_leaves_no_shard_and_loses_none(
    staging: Path, home: RemotePath, url: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RECORD, staging, url], check=False)
    assert killed.returncode == -9
    assert [path.name for path in home.iterdir()] == ["000000.tar"]
    with pytest.raises(ShardError, match="no complete shard here"):
        ShardSet.open(home)  # type: ignore[arg-type]
    publish(record(staging), staging, home)
    assert len(ShardSet.open(home)) == len(SAMPLES)  # type: ignore[arg-type]


def test_an_upload_that_arrives_cut_is_not_committed(
    staging: Path, home: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemotePath, "upload", lambda path, file: path.write_bytes(file.read_bytes()[:-512]))
    with pytest.raises(StoreError, match=r"000000\.tar: the upload arrived incomplete"):
        publish(record(staging), staging, home)
    assert not record_path(home, 0).exists()
    assert tar_path(staging, 0).exists()


def test_two_machines_on_one_shard_never_leave_a_record_beside_the_other_s_tar(
    staging: Path, home: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = RemotePath.write_bytes

    def slow_write(path: RemotePath, data: bytes) -> None:
        write_bytes(tar_path(home, 0), b"the other's")  # its upload ends just now
        write_bytes(path, data)

    monkeypatch.setattr(RemotePath, "write_bytes", slow_write)
    with pytest.raises(ShardBusyError, match="another machine writes this shard, too"):
        publish(record(staging), staging, home)
    assert not record_path(home, 0).exists()


def test_a_server_that_goes_away_costs_nothing_that_was_made(
    staging: Path, home: RemotePath, store: Store
) -> None:
    store.kill()
    try:
        with pytest.raises(StoreError, match=r"s3://.*: the store does not do as asked .*run again"):
            publish(record(staging), staging, home)
    finally:
        store.restart()
    publish(record(staging), staging, home)
    assert len(ShardSet.open(home)) == len(SAMPLES)  # type: ignore[arg-type]


def test_only_a_url_can_be_the_home_of_shards_that_are_made_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/big/disk: no URL.*--data FOLDER"):
        DataFolder(tmp_path, home="/big/disk")
    (tmp_path / "remote.url").write_text("/big/disk\n")
    with pytest.raises(ValueError, match=r"remote\.url: '/big/disk' is no URL"):
        shards_of(tmp_path)


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path(ENCODER_PRESETS["pocket"].codec).is_dir():
        pytest.skip("pocket's weights are not in this checkout")
    root = tmp_path_factory.mktemp("crawled") / "data"
    make_video(root / "videos" / "a.mp4", 3, 440)
    make_video(root / "videos" / "b.mp4", 3, 550)
    crawl(
        [root / "videos"],
        root / "manifest.jsonl",
        CrawlConfig(segment_s=1, stride_s=1, min_s=1.0, num_shards=2),
    )
    return root


def run(data: DataFolder, **changes: object) -> Report:
    torch.set_num_threads(1)  # tests share the machine's cores
    return encode(data, replace(CONFIG, **changes))  # type: ignore[arg-type]


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_data_set_whose_home_is_a_store_is_made_resumed_mended_and_the_same_as_one_here(
    crawled: Path, url: str, tmp_path: Path
) -> None:
    local, data = (DataFolder(shutil.copytree(crawled, tmp_path / name)) for name in ("local", "data"))
    run(local)
    data.settle(url)
    hidden = (data.root / "videos" / "b.mp4").rename(tmp_path / "unplugged")
    assert run(data).num_failed > 0
    assert status(data).failures[0]["kind"] == "transient"
    hidden.rename(data.root / "videos" / "b.mp4")
    assert run(data).num_failed == 0
    assert written(data.shards) == written(local.shards)
    assert not list(data.staging.glob("0*"))
    again = run(data)
    assert (again.made, len(again.complete), again.progress.num_encoded) == ([], 2, 0)
    found = status(data)
    assert (len(found.complete), len(found.missing), found.failures) == (2, 0, [])
    assert found.frames_per_s is None or found.frames_per_s > 0
    assert verify(data, deep=True) == (2, [])
    with pytest.raises(ValueError, match=r"the shards live in s3://"):
        data.settle("s3://elsewhere/set")
    tar = tar_path(data.shards, 0)
    tar.write_bytes(tar.read_bytes()[:-1024])
    repaired = run(data, mend=set_aside_broken(data, deep=False))
    assert [record.shard for record in repaired.made] == [0]
    assert written(data.shards) == written(local.shards)


def test_what_could_not_be_brought_home_is_brought_by_the_next_run_without_encoding(
    crawled: Path, url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataFolder(shutil.copytree(crawled, tmp_path / "data"))
    data.settle(url)
    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "upload", lambda path, file: store.kill() or path.write_bytes(b""))
        with pytest.raises(StoreError):
            run(data, shards="0", cache="off")
    assert len(ShardSet.open(data.staging)) > 0
    store.restart()
    report = run(data, shards="0", cache="off")
    assert (len(report.made), report.progress.num_encoded) == (1, 0)
    assert len(ShardSet.open(data.shards)) == len(report.made[0].samples)

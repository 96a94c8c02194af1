"""Training batches from shards in an object store: as from a disk, and a lost server is no damage."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from gvmgen.data import SegmentLoader
from shards.reader import ShardSet
from shards.remote import RemotePath, StoreError, shards_of
from shards.sample_cache import sample_cache
from tests.made_store import BUCKET, Store, serving_s3
from tests.samples import make_sample, make_shards

ROOMS = [[make_sample(f"{shard}{number}", 4) for number in range(3)] for shard in "ab"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("GVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GVM_CACHE_GB", "1")  # whatever the disk here has left
    sample_cache.cache_clear()
    with serving_s3() as store:
        yield store
    sample_cache.cache_clear()


def uploaded(shards: Path) -> RemotePath:
    home = shards_of(f"s3://{BUCKET}/set")
    assert isinstance(home, RemotePath)
    for path in shards.iterdir():
        (home / path.name).upload(path)
    return home


def batches(shards: Path, number: int) -> list[dict[str, Any]]:
    loader = SegmentLoader(ShardSet.open(shards), batch_size=2, seed=3, crop_s=2, on_corrupt="substitute")
    return [
        {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in islice(loader, number)
    ]


def test_batches_are_those_of_a_disk_where_the_cache_has_room_for_no_sample(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GVM_CACHE_GB", "0")  # each reader makes room with what the others fetched
    sample_cache.cache_clear()
    local = make_shards(tmp_path / "shards", ROOMS)
    home = uploaded(local)
    for found, wanted in zip(batches(home, 40), batches(local, 40), strict=True):
        assert found["keys"] == wanted["keys"]
        assert torch.equal(found["features"], wanted["features"])


def test_batches_are_those_of_a_disk_and_a_lost_server_stops_the_run_instead_of_counting_as_damage(
    store: Store, tmp_path: Path
) -> None:
    local = make_shards(tmp_path / "shards", ROOMS)
    home = uploaded(local)
    for found, wanted in zip(batches(home, 7), batches(local, 7), strict=True):
        assert found["keys"] == wanted["keys"]
        assert torch.equal(found["features"], wanted["features"])
        assert torch.equal(found["codes"], wanted["codes"])

    shards = ShardSet.open(home)
    for copy in (tmp_path / "cache" / "samples").glob("*/*"):
        copy.unlink()
    store.kill()
    loader = SegmentLoader(shards, batch_size=2, on_corrupt="substitute")
    with pytest.raises(StoreError, match=r"s3://.*the store does not do as asked"):
        next(iter(loader))
    assert not loader.substituted

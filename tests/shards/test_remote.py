"""Shards in an object store: read by ranges, kept in a cache, and nothing damaged ever handed out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.reader import ShardSet
from shards.remote import RemotePath, StoreError, located, shards_of
from shards.sample_cache import Extent, SampleCache, sample_cache
from shards.spec import CODES, FEATURES, Sample, ShardError, tar_path
from shards.verify import verify_shard
from tests.made_store import BUCKET, Store, serving_s3
from tests.samples import flipped, make_sample, make_shards

ROOMS = [[make_sample("a"), make_sample("b", 2.5, split="test")], [make_sample("c", 3), make_sample("d")]]
SAMPLES = [sample for shard in ROOMS for sample in shard]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving_s3() as store:
        yield store


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GVM_CACHE_GB", "1")  # whatever the disk here has left
    sample_cache.cache_clear()
    yield tmp_path / "cache" / "samples"
    sample_cache.cache_clear()


@pytest.fixture
def home(store: Store, cache: Path, tmp_path: Path) -> RemotePath:
    """Two shards in a folder of their own in the store."""
    home = shards_of(f"s3://{BUCKET}/{tmp_path.name}")
    assert isinstance(home, RemotePath)
    for path in make_shards(tmp_path / "shards", ROOMS).iterdir():
        (home / path.name).upload(path)
    return home


def assert_equal(found: Sample, wanted: Sample) -> None:
    assert (found.key, found.meta) == (wanted.key, {**wanted.meta, "key": wanted.key})
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.codes, wanted.codes)


def kept(cache: Path) -> list[Path]:
    return list(cache.glob("*/*"))


def test_every_sample_comes_back_as_it_was_written(home: RemotePath, cache: Path) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    for index, wanted in enumerate(SAMPLES):
        shards.check(index)
        assert_equal(shards.read(index), wanted)
    rows = np.empty((2, *SAMPLES[2].features.shape[1:]), np.float16)
    shards.read_rows(2, FEATURES, rows, start=1)
    np.testing.assert_array_equal(rows, SAMPLES[2].features[1:])
    np.testing.assert_array_equal(shards.read_array(0, CODES), SAMPLES[0].codes)
    assert len(kept(cache)) == len(SAMPLES)


def test_a_data_folder_says_where_its_shards_are(home: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "remote.url").write_text(f"s3://{BUCKET}/{tmp_path.name}\n")
    assert str(shards_of(tmp_path)) == str(home)
    assert len(ShardSet.open(shards_of(str(tmp_path)))) == len(SAMPLES)


def test_a_sample_is_fetched_once(home: RemotePath, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    read_range = RemotePath.read_range
    monkeypatch.setattr(
        RemotePath, "read_range", lambda tar, *ends: fetched.append(ends) or read_range(tar, *ends)
    )
    for _ in range(2):
        shards = ShardSet.open(home)  # type: ignore[arg-type]
        for index in range(len(SAMPLES)):
            shards.check(index)
            shards.read(index)
        sample_cache.cache_clear()  # as another process
    assert len(fetched) == len(SAMPLES)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_copy_in_the_cache_is_fetched_again(home: RemotePath, cache: Path, damage: str) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    shards.read(0)
    (copy,) = kept(cache)
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] if damage == "cut" else flipped(content, 300))
    sample_cache.cache_clear()  # as another process
    assert_equal(shards.read(0), SAMPLES[0])
    assert copy.read_bytes() == content


def test_the_cache_keeps_to_its_bound_and_lets_go_of_what_was_not_used_for_longest(
    home: RemotePath, tmp_path: Path
) -> None:
    samples = ShardSet.open(home).samples  # type: ignore[arg-type]
    first, last, another = (Extent(samples[i].tar, samples[i].record.fields) for i in (0, 3, 1))  # type: ignore[arg-type]
    all_bytes = sum(extent.end - extent.start for extent in (first, last, another))
    cache = SampleCache(tmp_path / "small", max_bytes=all_bytes - 1)

    def use(extent: Extent) -> None:
        descriptor, broken = cache.open(extent)
        os.close(descriptor)
        assert broken is None

    use(first)
    use(last)
    for path in kept(cache.folder):
        os.utime(path, (1, 1))  # long ago
    use(first)
    use(another)
    assert {path.name for path in kept(cache.folder)} == {first.name, another.name}


def test_a_sample_is_read_where_another_process_makes_room_with_it_at_once(
    home: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    rename = Path.rename

    def removed_first(aside: Path, target: Path) -> Path:
        aside.unlink()
        return rename(aside, target)

    monkeypatch.setattr(Path, "rename", removed_first)
    assert_equal(shards.read(0), SAMPLES[0])


def test_a_cut_tar_is_named(home: RemotePath) -> None:
    tar = tar_path(home, 1)
    tar.write_bytes(tar.read_bytes()[:-5000])
    with pytest.raises(ShardError, match=r"s3://.*000001\.tar: holds \d+ bytes, its commit record says"):
        ShardSet.open(home)  # type: ignore[arg-type]
    (problem,) = verify_shard(home, 1)  # type: ignore[arg-type]
    assert "000001.tar: holds" in problem


def test_a_tar_that_is_cut_while_it_is_read_gives_no_sample(home: RemotePath) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    tar = tar_path(home, 1)
    tar.write_bytes(tar.read_bytes()[: shards.samples[3].record.fields[FEATURES].offset + 100])
    assert_equal(shards.read(2), SAMPLES[2])
    with pytest.raises(ShardError, match="sample d: its tar ends at byte"):
        shards.read(3)


def test_a_flipped_bit_is_found_and_gives_no_sample(home: RemotePath, cache: Path) -> None:
    tar = tar_path(home, 0)
    offset = ShardSet.open(home).samples[1].record.fields[FEATURES].offset  # type: ignore[arg-type]
    tar.write_bytes(flipped(tar.read_bytes(), offset + 2000))
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    assert_equal(shards.read(0), SAMPLES[0])
    with pytest.raises(ShardError, match=r"000000\.tar: sample b: features\.npy is damaged"):
        shards.read(1)
    assert len(kept(cache)) == 1
    assert verify_shard(home, 0) == []  # type: ignore[arg-type]
    problems = verify_shard(home, 0, deep=True)  # type: ignore[arg-type]
    assert f"{tar}: sample b: features.npy is damaged" in problems[0]
    assert f"{tar}: its sha256 differs" in problems[1]


def test_a_tar_without_its_record_is_not_seen(home: RemotePath) -> None:
    tar_path(home, 1).with_suffix(".json").unlink()
    assert len(ShardSet.open(home)) == len(ROOMS[0])  # type: ignore[arg-type]


def test_a_folder_without_shards_is_told(store: Store) -> None:
    with pytest.raises(ShardError, match=rf"s3://{BUCKET}/nothing/shards: no complete shard here"):
        ShardSet.open(shards_of(f"s3://{BUCKET}/nothing"))


def test_a_url_that_nothing_can_open_is_told() -> None:
    with pytest.raises(ValueError, match=r"nosuch://bucket: .*pip install 'gvmgen\[remote\]'"):
        located("nosuch://bucket")


def test_a_server_that_goes_away_is_no_damage_and_what_is_here_can_be_read(
    home: RemotePath, store: Store, request: pytest.FixtureRequest
) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    shards.read(0)
    store.kill()
    request.addfinalizer(store.restart)
    assert_equal(shards.read(0), SAMPLES[0])
    with pytest.raises(StoreError, match=r"s3://.*000001\.tar: the store does not do as asked .*run again"):
        shards.read(2)
    with pytest.raises(StoreError):
        ShardSet.open(home)  # type: ignore[arg-type]

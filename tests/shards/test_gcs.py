"""Shards in Google Cloud Storage: the same store's manners as in S3, from a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.reader import ShardSet
from shards.remote import RemotePath, located, shards_of
from shards.sample_cache import sample_cache
from shards.spec import tar_path
from shards.verify import verify_shard
from tests.made_store import BUCKET, serving_gcs
from tests.samples import flipped, make_sample, make_shards

SAMPLES = [make_sample("a"), make_sample("b", 2.5, split="test")]


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    with serving_gcs() as store:
        yield store


@pytest.fixture
def home(store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemotePath]:
    """A shard in a folder of its own in the store."""
    monkeypatch.setenv("GVM_CACHE", str(tmp_path / "cache"))
    sample_cache.cache_clear()
    home = shards_of(f"gs://{BUCKET}/{tmp_path.name}")
    assert isinstance(home, RemotePath)
    for path in make_shards(tmp_path / "shards", [SAMPLES]).iterdir():
        (home / path.name).upload(path)
    yield home
    sample_cache.cache_clear()


def test_every_sample_comes_back_as_it_was_written(home: RemotePath) -> None:
    shards = ShardSet.open(home)  # type: ignore[arg-type]
    for index, wanted in enumerate(SAMPLES):
        shards.check(index)
        found = shards.read(index)
        assert found.key == wanted.key
        np.testing.assert_array_equal(found.features, wanted.features)
        np.testing.assert_array_equal(found.codes, wanted.codes)


def test_a_shard_is_verified_and_a_flipped_bit_is_found(home: RemotePath) -> None:
    assert verify_shard(home, 0, deep=True) == []  # type: ignore[arg-type]
    tar = tar_path(home, 0)
    tar.write_bytes(flipped(tar.read_bytes(), 3000))
    assert "sample a: features.npy is damaged" in verify_shard(home, 0, deep=True)[0]  # type: ignore[arg-type]


def test_objects_are_listed_changed_and_removed(home: RemotePath) -> None:
    small = home / "note.txt"
    assert not small.exists()
    small.write_bytes(b"one")
    former = small.version()
    assert (small.read_bytes(), small.read_range(1, 3), small.stat().st_size) == (b"one", b"ne", 3)
    small.write_bytes(b"two")
    assert small.version() != former
    assert small.name in {path.name for path in home.iterdir()}
    assert home.is_dir()
    small.unlink()
    small.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        small.read_bytes()
    assert not located(f"gs://{BUCKET}/nothing").exists()

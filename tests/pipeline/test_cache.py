"""The feature cache: what it gives back is what was made, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.cache import FeatureCache, SourceFeatures
from pipeline.cache_budget import CacheBudget, entries, entry_bytes
from pipeline.encode import _stacked
from pipeline.manifest import Source

NUM_FRAMES = 7
SOURCE = Source(
    source="a.mp4",
    source_size=1,
    source_mtime_ns=1,
    source_sha256="ab" * 32,
    source_duration_s=NUM_FRAMES - 0.5,
)
FEATURES = np.random.default_rng(0).standard_normal((NUM_FRAMES, 577, 4)).astype(np.float16)  # [F, P, D]
FRAME_BYTES = FEATURES[0].nbytes + 4  # with its checksum


def entry(folder: Path, fingerprint: str = "clip") -> SourceFeatures:
    """Opened anew, as another process would."""
    return FeatureCache(folder, {"weights_sha256": fingerprint}).source(SOURCE)


def write(features: SourceFeatures, frames: Iterable[int]) -> None:
    for frame in frames:
        features.write(frame, FEATURES[frame])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A cache that holds the whole source, complete."""
    write(entry(tmp_path), range(NUM_FRAMES))
    entry(tmp_path).mark_if_complete()
    return tmp_path


def chunk(folder: Path, frame: int) -> Path:
    return entry(folder).path / "c" / str(frame) / "0" / "0"


def sound_frames(folder: Path) -> list[int]:
    found = entry(folder).read(range(NUM_FRAMES))
    for frame, features in found.items():
        np.testing.assert_array_equal(features, FEATURES[frame])
    return list(found)


def test_frames_come_back_as_they_were_written(full: Path) -> None:
    assert sound_frames(full) == list(range(NUM_FRAMES))


def test_frames_lie_side_by_side_and_go_into_a_sample_without_a_copy(full: Path) -> None:
    rows = list(entry(full).read([2, 3, 4]).values())
    assert _stacked(rows) is rows[0].base
    for others in (rows[::-1], rows[:2], [rows[0].copy(), *rows[1:]]):
        np.testing.assert_array_equal(_stacked(others), np.stack(others))


def test_a_plain_zarr_reader_reads_an_entry(full: Path) -> None:
    np.testing.assert_array_equal(zarr.open_array(entry(full).path, mode="r")[:], FEATURES)


def test_frames_that_were_never_written_are_absent_not_zero(tmp_path: Path) -> None:
    assert sound_frames(tmp_path) == []
    write(entry(tmp_path), [2, 3])
    assert sound_frames(tmp_path) == [2, 3]


def test_another_clip_does_not_see_them(full: Path) -> None:
    assert entry(full, "other clip").read(range(NUM_FRAMES)) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:1000],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes(len(data)),
        lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:],
    ],
    ids=["empty", "cut", "cut by a byte", "longer", "zeros", "one bit"],
)
def test_a_damaged_frame_is_made_again(full: Path, damage: object) -> None:
    path = chunk(full, 3)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert sound_frames(full) == [0, 1, 2, 4, 5, 6]
    assert entry(full).lost() == [3]
    write(entry(full), [3])
    assert sound_frames(full) == list(range(NUM_FRAMES))
    assert entry(full).lost() == []


def test_a_deleted_frame_is_found_in_a_complete_entry(full: Path) -> None:
    chunk(full, 5).unlink()
    assert sound_frames(full) == [0, 1, 2, 3, 4, 6]
    assert entry(full).lost() == [5]


def test_an_entry_is_complete_only_with_its_last_frame(tmp_path: Path) -> None:
    write(entry(tmp_path), range(NUM_FRAMES - 1))
    entry(tmp_path).mark_if_complete()
    assert entry(tmp_path).lost() == []
    chunk(tmp_path, 0).unlink()
    assert entry(tmp_path).lost() == []  # it never was complete, so nothing got lost


def test_a_damaged_description_costs_no_frames(full: Path) -> None:
    (entry(full).path / "zarr.json").write_text('{"shape": [')
    assert sound_frames(full) == []
    write(entry(full), [0])
    assert sound_frames(full) == list(range(NUM_FRAMES))


def test_discarded_frames_are_gone_and_the_last_takes_the_entry_with_it(tmp_path: Path) -> None:
    write(entry(tmp_path), range(NUM_FRAMES))
    entry(tmp_path).discard(range(1, NUM_FRAMES))
    assert sound_frames(tmp_path) == [0]
    entry(tmp_path).discard([0])
    assert not entry(tmp_path).path.exists()


def test_a_complete_entry_is_not_discarded(full: Path) -> None:
    entry(full).discard(range(NUM_FRAMES))
    assert sound_frames(full) == list(range(NUM_FRAMES))


def source(number: int) -> Source:
    return replace(SOURCE, source_sha256=f"{number:02x}" * 32)


def kept_frames(cache: FeatureCache, number: int) -> int:
    return len(cache.source(source(number)).read(range(NUM_FRAMES)))


def test_a_full_cache_drops_the_sources_that_were_cached_longest_ago(tmp_path: Path) -> None:
    budget = CacheBudget(tmp_path, 10 * FRAME_BYTES)
    cache = FeatureCache(tmp_path, {"weights_sha256": "clip"}, budget)
    for number in range(3):
        write(cache.source(source(number)), range(4))
        when = 1_000_000_000 + number  # clearly one after the other, however coarse the disk's clock
        os.utime(cache.source(source(number)).path / "c", (when, when))
    assert [kept_frames(cache, number) for number in range(3)] == [0, 4, 4]


def test_a_source_larger_than_the_cache_keeps_as_much_as_there_is_room_for(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {"weights_sha256": "clip"}, CacheBudget(tmp_path, 3 * FRAME_BYTES))
    write(cache.source(source(0)), range(NUM_FRAMES))
    assert kept_frames(cache, 0) == 3


def test_a_budget_counts_what_is_there_and_what_others_add(tmp_path: Path) -> None:
    others = FeatureCache(tmp_path, {"weights_sha256": "other clip"})
    write(others.source(source(0)), range(NUM_FRAMES))
    cache = FeatureCache(tmp_path, {"weights_sha256": "clip"}, CacheBudget(tmp_path, 8 * FRAME_BYTES))
    write(cache.source(source(1)), [0])
    assert kept_frames(others, 0) == NUM_FRAMES
    write(others.source(source(2)), range(NUM_FRAMES))  # too much, and not of our doing
    write(cache.source(source(1)), [1])
    assert sum(map(entry_bytes, entries(tmp_path))) <= 8 * FRAME_BYTES


def test_an_entry_that_made_room_while_it_was_open_is_begun_again(tmp_path: Path) -> None:
    opened = entry(tmp_path)
    opened.write(0, FEATURES[0])
    shutil.rmtree(opened.path)
    opened.write(1, FEATURES[1])
    assert sound_frames(tmp_path) == [1]


def test_an_entry_moves_with_its_folder(full: Path, tmp_path: Path) -> None:
    shutil.move(full, tmp_path.parent / "moved")
    assert sound_frames(tmp_path.parent / "moved") == list(range(NUM_FRAMES))

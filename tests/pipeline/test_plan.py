"""The plan: frozen, appended to, and never changed under a finished shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.folder import choose
from pipeline.plan import FinishedShard, Plan, freeze, read_plan, write_plan
from tests.pipeline.made_segments import segment

SEGMENTS = [segment(number, shard=number % 3) for number in range(1, 8)]
FIRST = freeze({}, SEGMENTS, lambda shard: None)


def all_finished(shard: int) -> FinishedShard:
    return FinishedShard(FIRST[shard].plan_hash, left_out=frozenset())


def keys(plan: Plan) -> list[str]:
    return sorted(key for shard in plan.values() for key in shard.keys)


def test_the_first_plan_takes_the_manifests_shards() -> None:
    assert {shard: len(planned.keys) for shard, planned in FIRST.items()} == {0: 2, 1: 3, 2: 2}


def test_the_plan_does_not_depend_on_the_order_of_the_rows() -> None:
    assert freeze({}, SEGMENTS[::-1], lambda shard: None) == FIRST


def test_freezing_again_changes_nothing() -> None:
    assert freeze(FIRST, SEGMENTS, lambda shard: None) == FIRST
    assert freeze(FIRST, SEGMENTS, all_finished) == FIRST


@pytest.mark.parametrize("finished", [all_finished, lambda shard: None])
def test_rows_that_are_appended_only_add_shards_after_the_last(finished: object) -> None:
    more = [segment(number, shard=0) for number in range(8, 15)]
    plan = freeze(FIRST, SEGMENTS + more, finished)  # type: ignore[arg-type]
    assert {shard: plan[shard] for shard in FIRST} == FIRST
    assert sorted(plan) == [0, 1, 2, 3, 4, 5]
    assert keys(plan) == sorted(s.key for s in SEGMENTS + more)


def test_a_changed_row_under_a_finished_shard_is_refused_with_what_differs() -> None:
    changed = [replace(SEGMENTS[0], split="test"), *SEGMENTS[1:]]
    with pytest.raises(ValueError, match=rf"shard 1 .*{SEGMENTS[0].key}: split was 'train', is 'test'"):
        freeze(FIRST, changed, all_finished)


def test_a_row_that_went_from_a_finished_shard_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"{SEGMENTS[0].key} is gone from it"):
        freeze(FIRST, SEGMENTS[1:], all_finished)


def test_all_shards_that_the_manifest_contradicts_are_named_with_the_command_that_makes_them_again() -> None:
    fewer = [segment for segment in SEGMENTS if segment.shard == 1]
    for forced in ([], [0]):
        with pytest.raises(ValueError, match=r"finished.* --shards 0,2 --force"):
            freeze(FIRST, fewer, all_finished, forced)
    plan = freeze(FIRST, fewer, all_finished, forced=[0, 2])
    assert plan[0].keys == plan[2].keys == []


def test_a_failed_segment_may_go_from_a_finished_shard() -> None:
    finished = FinishedShard(FIRST[1].plan_hash, left_out=frozenset([SEGMENTS[0].key]))
    assert freeze(FIRST, SEGMENTS[1:], lambda shard: finished)[1] == FIRST[1]


def test_an_unfinished_shard_follows_the_manifest() -> None:
    changed = [replace(SEGMENTS[0], split="test"), *SEGMENTS[2:]]
    plan = freeze(FIRST, changed, lambda shard: None)
    assert keys(plan) == sorted(s.key for s in changed)
    assert plan[1].plan_hash != FIRST[1].plan_hash
    assert plan[0] == FIRST[0]


def test_a_forced_shard_follows_the_manifest_even_to_nothing() -> None:
    changed = [replace(SEGMENTS[0], split="test"), *(s for s in SEGMENTS[1:] if s.shard != 2)]
    plan = freeze(FIRST, changed, all_finished, forced=[1, 2])
    assert plan[0] == FIRST[0]
    assert plan[1].plan_hash != FIRST[1].plan_hash
    assert plan[2].keys == []


def test_a_moved_source_changes_no_plan() -> None:
    moved = [replace(s, source=f"/elsewhere/{s.source}", source_mtime_ns=2) for s in SEGMENTS]
    assert freeze(FIRST, moved, all_finished) == FIRST


def test_a_plan_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.jsonl", FIRST)
    assert read_plan(tmp_path / "plan.jsonl") == FIRST


def test_a_plan_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    write_plan(path, FIRST)
    path.write_text(path.read_text().replace('"train"', '"test"', 1))
    with pytest.raises(ValueError, match="shard 0 is not what its plan hash says"):
        read_plan(path)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [("all", [0, 1, 2]), ("0-99", [0, 1, 2]), ("1", [1]), ("0,2-2, 50-60", [0, 2]), ("7", [])],
)
def test_shards_are_chosen_by_number_and_range(numbers: str, expected: list[int]) -> None:
    assert sorted(choose(FIRST, numbers)) == expected


@pytest.mark.parametrize("numbers", ["a", "3-1", "1,,2", "1-", "-1", "1;2"])
def test_a_range_that_is_none_is_refused(numbers: str) -> None:
    with pytest.raises(ValueError, match="--shards"):
        choose(FIRST, numbers)

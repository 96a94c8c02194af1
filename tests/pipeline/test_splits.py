"""Groups: what belongs together is never torn apart, and stays where it is when rows are added."""

from __future__ import annotations

import itertools
import random

from pipeline.manifest import Split, split_of
from pipeline.splits import Groups


def seeded(seed: int = 0) -> Groups:
    return Groups(lambda group: split_of(group, 0.15, seed))


def test_names_joined_through_others_are_one_group_in_any_order() -> None:
    rows = [["a1", "song:x"], ["b2", "song:y"], ["c3", "song:x", "dance:z"], ["d4", "dance:z"], ["e5"]]
    found = set()
    for order in itertools.permutations(rows):
        groups = seeded()
        for names in order:
            groups.join(names)
        found.add(tuple(groups.group(name) for name in ("a1", "b2", "c3", "d4", "e5")))
    assert found == {("dance:z", "song:y", "dance:z", "dance:z", "e5")}


def test_no_group_crosses_the_splits() -> None:
    chance = random.Random(0)
    rows = [
        [f"{i:04x}", f"song:{chance.randrange(300)}", f"film:{chance.randrange(900)}"] for i in range(1000)
    ]
    groups = seeded()
    for names in rows:
        groups.join(names)
    splits: dict[str, set[Split]] = {}
    for names in rows:
        for name in names:
            splits.setdefault(name, set()).add(groups.split(groups.group(names[0])))
    assert all(len(found) == 1 for found in splits.values())


def test_rows_of_known_songs_change_no_split() -> None:
    before, after = seeded(), seeded()
    rows = [[f"{i:04x}", f"song:{i % 50}"] for i in range(200)]
    for names in rows:
        before.join(names)
    for names in [["0000a", "song:7"], *rows, *([f"{i:04x}", f"song:{i % 60}"] for i in range(200, 400))]:
        after.join(names)
    for content, _ in rows:
        assert before.group(content) == after.group(content)
        assert before.split(before.group(content)) == after.split(after.group(content))


def test_about_fifteen_of_a_hundred_groups_are_for_testing_and_the_seed_chooses_which() -> None:
    chosen = []
    for seed in (0, 1):
        groups = seeded(seed)
        for i in range(4000):
            groups.join([f"{i:04x}"])
        chosen.append({i for i in range(4000) if groups.split(groups.group(f"{i:04x}")) == "test"})
    assert all(0.13 < len(test) / 4000 < 0.17 for test in chosen)
    assert chosen[0] != chosen[1]


def test_a_fixed_split_holds_for_the_whole_group() -> None:
    groups = Groups(lambda _: "train")
    groups.join(["a1", "song:x"])
    groups.join(["b2", "song:x"])
    groups.fix("b2", "test")
    assert groups.split(groups.group("a1")) == "test"
    assert not groups.is_torn(groups.group("a1"))


def test_a_group_fixed_to_both_splits_is_torn_and_trains() -> None:
    groups = Groups(lambda _: "test")
    groups.fix("a1", "test")
    groups.fix("b2", "train")
    groups.join(["a1", "b2"])
    assert groups.is_torn(groups.group("a1"))
    assert groups.split(groups.group("a1")) == "train"


def test_a_long_chain_of_names_is_walked_quickly() -> None:
    groups = seeded()
    for i in range(200_000):
        groups.join([f"{i:06x}", f"{i + 1:06x}"])
    assert groups.group(f"{200_000:06x}") == "000000"

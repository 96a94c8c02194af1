"""Which split a row falls into: by what must not be torn apart, seeded, and stable when rows are added.

A row has names: its content, its song, its dance, its cluster of duplicates. Rows that share a name,
directly or through
others, form a group, and a group lies in one split.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from functools import cached_property

from pipeline.manifest import Split


class Groups:
    """Names joined into groups. A million names take some 150 MB."""

    def __init__(self, default_split: Callable[[str], Split]) -> None:
        self._default_split = default_split  # of a group that is fixed to none
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._parents = array("L")
        self._fixed: dict[str, set[Split]] = {}  # by any name of the group

    def join(self, names: Iterable[str]) -> None:
        """From here on these names are of one group."""
        first, *others = (self._number(name) for name in names)
        for other in others:
            self._link(self._root(first), self._root(other))

    def fix(self, name: str, split: Split) -> None:
        """The name's rows belong in this split, whatever the default says."""
        self._number(name)
        self._fixed.setdefault(name, set()).add(split)

    def group(self, name: str) -> str:
        """The name that stands for the group: its first by `_rank`, whatever the order of joining."""
        return self._names[self._root(self._numbers[name])]

    def is_torn(self, group: str) -> bool:
        """Whether names that are one group now were fixed to both splits before."""
        return len(self._fixed_splits.get(group, ())) > 1

    def split(self, group: str) -> Split:
        """The group's split: the one it is fixed to (train where that is both), else the default of its
        name."""
        fixed = self._fixed_splits.get(group, set())
        if fixed:
            return "train" if "train" in fixed else "test"
        return self._default_split(group)

    @cached_property
    def _fixed_splits(self) -> dict[str, set[Split]]:
        """By group; asked for when all names are joined."""
        by_group: dict[str, set[Split]] = {}
        for name, splits in self._fixed.items():
            by_group.setdefault(self.group(name), set()).update(splits)
        return by_group

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
            self._parents.append(number)
        return number

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]  # halves the path, so that look-ups stay short
            number = parents[number]
        return number

    def _link(self, a: int, b: int) -> None:
        first, second = sorted((a, b), key=lambda number: _rank(self._names[number]))
        self._parents[second] = first


def _rank(name: str) -> tuple[bool, str]:
    """Names that lists give (`song:…`) before those of contents: another video of the song changes no
    group."""
    return ":" not in name, name

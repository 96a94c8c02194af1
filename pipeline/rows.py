"""The manifest's segments by key, read from the disk one at a time."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.jsonl import to_row
from pipeline.manifest import Segment, require_manifest


class ManifestRows(Mapping[str, Segment]):
    """Segments that the filters did not drop, in the manifest's order.

    A million of them would take a gigabyte of memory; where they lie takes 32 MB. They stay as they were when
    this was made, though the manifest is replaced meanwhile. Raises FileNotFoundError, with the command that
    makes a manifest, where there is none, and ValueError that names a line that is no row, or a key that is
    there twice. Used in a `with`, it closes its file.
    """

    def __init__(self, path: Path) -> None:
        require_manifest(path)
        self._path, self._file = path, path.open("rb")  # a file that is replaced stays readable
        try:
            self._find_rows()
            self._refuse_twins()
        except BaseException:
            self._file.close()
            raise

    def _find_rows(self) -> None:
        hashes, places = array("q"), array("q")  # of keys; of a line its first byte and its length
        place = 0
        for number, line in enumerate(self._file, start=1):
            where = f"{self._path}: line {number}"
            row = to_row(line, where)
            if row.get("dropped") is None:
                hashes.append(hash(Segment.from_json(row, where).key))
                places.extend((place, len(line)))
            place += len(line)
        self._places = np.array(places, np.int64).reshape(-1, 2)
        self._order = np.argsort(np.array(hashes, np.int64), kind="stable")
        self._hashes = np.array(hashes, np.int64)[self._order]

    def _refuse_twins(self) -> None:
        """Raise ValueError where two rows have one key: only rows of equal hashes are read."""
        (equal,) = np.nonzero(self._hashes[1:] == self._hashes[:-1])
        involved = np.union1d(equal, equal + 1)
        count = Counter(self._read(index).key for index in self._order[involved])
        if twins := [key for key, number in count.items() if number > 1]:
            more = f", and so are {len(twins) - 1} more" if len(twins) > 1 else ""
            raise ValueError(
                f"{self._path}: the key {twins[0]} is there twice{more}. Leave one row of each, or make the "
                "manifest anew: gvm-prep crawl-manifest"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, key: str) -> Segment:
        first, last = (
            np.searchsorted(self._hashes, hash(key)),
            np.searchsorted(self._hashes, hash(key), "right"),
        )
        for index in self._order[first:last]:  # more than one only where hashes collide
            segment = self._read(index)
            if segment.key == key:
                return segment
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (segment.key for segment in self.in_order())

    def __len__(self) -> int:
        return len(self._places)

    def in_order(self) -> Iterator[Segment]:
        """Each row read once, where `values` looks every key up."""
        return map(self._read, range(len(self)))

    def _read(self, index: int) -> Segment:
        place, length = self._places[index].tolist()
        return Segment.from_json(json.loads(os.pread(self._file.fileno(), length, place)), str(self._path))

"""What the filters measured, by segment: an append-only journal beside the manifest.

Rows are read where they are needed, by their place in the file: a million of them do not fit in memory.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.jsonl import append_row, mend_journal

SCORES_NAME = "scores.jsonl"
Version = int | str  # of a filter, and of the model that it runs where that is a user's own


class ScoreBook:
    """Scores by key; a later row of a key adds to the earlier ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, int | tuple[int, ...]] = {}  # one, mostly: a tuple is twice as large
        if path.is_file():
            self._read()

    def scores(self, key: str) -> dict[str, Any]:
        """All that was measured of the segment."""
        scores: dict[str, Any] = {}
        for row in self._rows(key):
            scores |= row["scores"]
        return scores

    def filters(self, key: str) -> dict[str, Version]:
        """The filters that measured the segment, with their versions."""
        filters: dict[str, Version] = {}
        for row in self._rows(key):
            filters |= row["filters"]
        return filters

    def add(self, key: str, scores: dict[str, Any], filters: dict[str, Version]) -> None:
        """Write down at once what was measured: a killed run goes on where it was."""
        offset = self.path.stat().st_size if self.path.is_file() else 0
        append_row(self.path, {"filters": filters, "key": key, "scores": scores})
        self._note(key, offset)

    def _rows(self, key: str) -> list[dict[str, Any]]:
        rows = []
        for offset in self._offsets_of(key):
            self._file.seek(offset)
            rows.append(json.loads(self._file.readline()))
        return rows

    def _note(self, key: str, offset: int) -> None:
        self._offsets[key] = (*self._offsets_of(key), offset) if key in self._offsets else offset

    def _offsets_of(self, key: str) -> tuple[int, ...]:
        offsets = self._offsets.get(key, ())
        return (offsets,) if isinstance(offsets, int) else offsets

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")

    def _read(self) -> None:
        """Where each row lies."""
        mend_journal(self.path)
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                self._note(_key_of(line), offset)
                offset += len(line)


def _key_of(line: bytes) -> str:
    """The row's key without parsing the row: a million prints take a minute to parse, and no key holds a
    quote."""
    begin = line.index(b'"key": "') + len(b'"key": "')
    return line[begin : line.index(b'"', begin)].decode()

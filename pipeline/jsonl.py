"""JSON lines on disk: sorted keys, one row a line; a file is the old one or the whole new one."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False)  # made once: `json.dumps` makes one a call


def to_line(row: Row) -> str:
    """The row as one line; file names that are no UTF-8 survive as escapes."""
    return _ENCODER.encode(row) + "\n"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace `path` by these rows at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(to_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def append_row(path: Path, row: Row) -> None:
    """Add one row to a journal; a journal's last line may be cut off by a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_line(row))


def mend_journal(path: Path) -> None:
    """Cut away a last line that a kill cut off, so that the next row does not stick to it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            end = begin + newline + 1 if newline >= 0 else begin
            if newline >= 0:
                break
        file.truncate(end)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file, one at a time. Raises ValueError that names the line that is no JSON object."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield to_row(line, f"{path}: line {number}")


def read_some_rows(path: Path, numbers: Collection[int]) -> dict[int, dict[str, Any]]:
    """The rows of these numbers, which count from 0; the others are not parsed."""
    with path.open(encoding="utf-8") as file:
        chosen = ((number, line) for number, line in enumerate(file) if number in numbers)
        return {number: to_row(line, f"{path}: line {number + 1}") for number, line in chosen}


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a journal up to the one that a kill cut off; nothing where there is no journal."""
    try:
        yield from read_rows(path)
    except (FileNotFoundError, ValueError):
        return


def to_row(line: str | bytes, where: str) -> dict[str, Any]:
    """A line's row. Raises ValueError that opens with `where`."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no JSON object but {type(row).__name__}")
    return row

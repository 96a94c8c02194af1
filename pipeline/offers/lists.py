"""Lists of videos as CSV, TSV, JSONL or Parquet, one row a video.

Columns, in any order and case: one of `video url path file source location` (needed), and `group song_id
kind style licence terms split start_s end_s music`. Relative paths count from the list's own folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.offers.candidate import Candidate, Offer, Problem, split_name

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LOCATION_COLUMNS = ("location", "url", "video_url", "youtube_url", "video", "path", "file", "source")
GROUP_COLUMNS = {"group": "group", "song_id": "song", "song": "song", "video_id": "video", "film": "film"}
ALIASES = {"license": "licence", "start": "start_s", "end": "end_s", "audio": "music"}
MAX_LINE = 1_000_000  # characters; a longer line is no list

Row = Mapping[str, Any]


def read_list(spec: str) -> Iterator[Offer]:
    """Candidates of a list; a malformed line becomes a Problem that names it, and reading goes on."""
    path = Path(spec).expanduser()
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    for number, row in readers[path.suffix.lower()](path):
        origin = f"{path.name} line {number}"
        if isinstance(row, str):
            yield Problem(location=str(path), origin=origin, reason=f"{origin}: {row}")
        else:
            yield _offer({str(k).strip().lower(): v for k, v in row.items()}, path, origin)


def _offer(row: dict[str, Any], path: Path, origin: str) -> Offer:
    row = {ALIASES.get(name, name): value for name, value in row.items() if value not in (None, "")}
    location = next((str(row[name]).strip() for name in LOCATION_COLUMNS if name in row), "")
    try:
        if not location:
            raise ValueError(f"no video; wants one of the columns {', '.join(LOCATION_COLUMNS)}")
        return Candidate(
            location=absolute(location, path.parent),
            origin=origin,
            source_name=path.stem,
            groups=_groups(row, path.stem),
            kind=_text(row, "kind"),
            style=_text(row, "style"),
            licence=_text(row, "licence"),
            terms=_text(row, "terms"),
            split=split_name(str(row.get("split", ""))),
            start_s=seconds(row.get("start_s", 0.0)),
            end_s=seconds(row["end_s"]) if "end_s" in row else None,
            music=absolute(str(row["music"]), path.parent) if "music" in row else None,
        )
    except ValueError as error:
        return Problem(location=location or str(path), origin=origin, reason=f"{origin}: {error}")


def absolute(location: str, folder: Path) -> str:
    """A URL as it is; a path made absolute, counted from `folder`."""
    return location if "://" in location else str((folder / Path(location).expanduser()).resolve())


def seconds(value: object) -> float:
    """Seconds of `12.5`, `1:02:03` or `2:03`. ValueError for anything else, infinite or below zero."""
    parts = str(value).strip().split(":")
    try:
        total = sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))
    except ValueError:
        total = -1.0
    if not 0 <= total < float("inf") or len(parts) > 3:
        raise ValueError(f"{value!r} is no time; wants seconds or h:mm:ss")
    return total


def _text(row: Row, name: str) -> str | None:
    return str(row[name]).strip() if name in row else None


def _groups(row: Row, source_name: str) -> tuple[str, ...]:
    return tuple(
        f"{kind}:{source_name}:{str(row[column]).strip()}"
        for column, kind in GROUP_COLUMNS.items()
        if column in row
    )


def _csv_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header_line = file.readline(MAX_LINE)
        delimiter = "\t" if "\t" in header_line else ";" if ";" in header_line else ","
        header = next(csv.reader([header_line], delimiter=delimiter), [])
        reader = csv.reader(file, delimiter=delimiter)
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield reader.line_num + 1, f"unreadable: {error}"
                continue
            if values is None:
                return
            if len(values) > len(header):
                yield reader.line_num + 1, f"{len(values)} values under {len(header)} columns"
            elif any(values):
                yield reader.line_num + 1, dict(zip(header, values, strict=False))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield number, f"not JSON: {error}"
                continue
            yield number, row if isinstance(row, dict) else "not a JSON object"


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row | str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow. Run: pip install 'gvmgen[lists]'") from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from error

"""What a crawl gathers and learns of each file, on disk: a million take no memory, and a kill costs none.

The book lies beside the manifest while a crawl runs, or was killed. Once the manifest is written it goes:
what it knew stands in the rows then. One table each:

    looks      what opening a file told, by the file's name; kept over kills
    wanted     the files of this crawl, and what its sources say about them
    left_out   what gives no segment, and why
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pipeline.jsonl import read_rows, to_line
from pipeline.manifest import Source
from pipeline.sources import LeftOut, Look, is_settled, look_of, name_of

SCHEMA = """
PRAGMA locking_mode = EXCLUSIVE;  -- two crawls of one manifest would undo each other's work
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;  -- a kill costs nothing; where the power fails, files are read again
CREATE TABLE IF NOT EXISTS looks (name BLOB PRIMARY KEY, sha256 TEXT, row TEXT) WITHOUT ROWID;
DROP TABLE IF EXISTS wanted;
CREATE TABLE wanted (name BLOB PRIMARY KEY, about TEXT, is_former INT) WITHOUT ROWID;
DROP TABLE IF EXISTS left_out;
CREATE TABLE left_out (row TEXT);
"""
BATCH = 1000  # rows that are read at a time while others are written
REFUSALS = {
    sqlite3.SQLITE_BUSY: "another crawl is at work on this manifest; wait for its end",
    sqlite3.SQLITE_NOTADB: "damaged. Remove it: the next crawl reads the files again",
    sqlite3.SQLITE_CORRUPT: "damaged. Remove it: the next crawl reads the files again",
}


class SourceBook:
    """Names are bytes, as the file system has them: not all are text."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.executescript(SCHEMA)

    def learn(self, rows: Path, append: bool) -> None:
        """Take over what the rows of an earlier crawl say of their files; what is known already stays.

        append: the files that gave segments are wanted again.
        """
        last = None
        for row in read_rows(rows) if rows.is_file() else ():
            look = look_of(row)
            if look == last or not is_settled(look):
                continue  # the next segment of the same file, or a file to be tried again
            last = look
            self._write_look("IGNORE", look)
            if append and isinstance(look, Source):
                self._want(look.source, look.about, is_former=True)

    def note(self, look: Look) -> None:
        """Write down at once what a file told."""
        self._write_look("REPLACE", look)
        self._database.commit()

    def want(self, name: str, about: dict[str, Any]) -> None:
        self._want(name, about, is_former=False)

    def about(self, name: str) -> dict[str, Any]:
        """What this crawl's sources said of the file so far."""
        query = "SELECT about FROM wanted WHERE name = ? AND NOT is_former"
        row = self._database.execute(query, (os.fsencode(name),)).fetchone()
        return json.loads(row[0]) if row else {}

    def leave_out(self, left_out: LeftOut) -> None:
        self._database.execute("INSERT INTO left_out VALUES (?)", (to_line(left_out.to_json()),))

    def left_out(self) -> Iterator[dict[str, Any]]:
        return (json.loads(row) for (row,) in self._database.execute("SELECT row FROM left_out"))

    def is_empty(self) -> bool:
        return self._database.execute("SELECT 1 FROM looks LIMIT 1").fetchone() is None

    def num_to_look_at(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM wanted WHERE NOT is_former").fetchone()[0])

    def to_look_at(self) -> Iterator[tuple[str, Look | None]]:
        """(name, what is known) of each wanted file, by name. Looks may be noted meanwhile."""
        query = (
            "SELECT name, row FROM wanted LEFT JOIN looks USING (name)"
            f" WHERE NOT is_former AND name > ? ORDER BY name LIMIT {BATCH}"
        )
        last = b""
        while batch := self._database.execute(query, (last,)).fetchall():
            for last, row in batch:
                look = look_of(json.loads(row)) if row else None
                yield os.fsdecode(last), look if look and is_settled(look) else None

    def looks(self) -> Iterator[Look]:
        """Each wanted file with what is said of it, by content: the same content comes in a row."""
        query = "SELECT row, about FROM wanted JOIN looks USING (name) ORDER BY sha256, name"
        for row, about in self._database.execute(query):
            yield look_of(json.loads(row) | {"about": json.loads(about)})

    def contents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(hash, what is said of it) of each wanted file that can be cut."""
        query = "SELECT sha256, about FROM wanted JOIN looks USING (name) WHERE sha256 != ''"
        return ((sha256, json.loads(about)) for sha256, about in self._database.execute(query))

    def _want(self, name: str, about: dict[str, Any], is_former: bool) -> None:
        values = (os.fsencode(name), to_line(about), is_former)
        self._database.execute("REPLACE INTO wanted VALUES (?, ?, ?)", values)

    def _write_look(self, on_conflict: str, look: Look) -> None:
        row, sha256 = look.to_json(), ""
        if isinstance(look, Source):
            row, sha256 = row | {"about": {}}, look.source_sha256
        values = (os.fsencode(name_of(look)), sha256, to_line(row))
        self._database.execute(f"INSERT OR {on_conflict} INTO looks VALUES (?, ?, ?)", values)


@contextmanager
def source_book(manifest: Path) -> Iterator[SourceBook]:
    """The book beside the manifest; removed when the block ends well, kept for the next crawl when not.

    Raises ValueError where another crawl holds it, or it is damaged; OSError where the disk is full.
    """
    path = manifest.with_name(f".{manifest.name}.crawl")
    path.parent.mkdir(parents=True, exist_ok=True)
    is_needed = True
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            book = SourceBook(database)
            try:
                yield book
                is_needed = False
            finally:
                is_needed = is_needed and not book.is_empty()
    except sqlite3.Error as error:
        raise _explained(error, path) from error
    finally:
        if not is_needed:
            path.unlink()


def _explained(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR):
        return OSError(f"{path}: {error}")
    return ValueError(f"{path}: {REFUSALS[code]}") if code in REFUSALS else error

"""Room for the feature cache: where it is full, the sources that were cached longest ago go. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CHUNKS = "c"  # zarr's folder in an entry; one folder a frame in it
MEASURES = 16  # of the whole folder while the budget is written through once: other processes write, too


class CacheBudget:
    """Keeps a cache folder within `max_bytes`, but for what other processes write between two looks at it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._used: int | None = None  # bytes; None: not measured yet
        self._written = 0  # bytes since the last look

    def admit(self, entry: Path, num_bytes: int) -> bool:
        """Whether a frame may be added to this entry; others go for it, oldest first."""
        if self._used is None or self._written > self.max_bytes // MEASURES:
            self._used, self._written = sum(map(entry_bytes, entries(self.folder))), 0
        if self._used + num_bytes > self.max_bytes:
            self._used -= _drop(self.folder, entry, self._used + num_bytes - self.max_bytes)
        if self._used + num_bytes > self.max_bytes:
            return False
        self._used += num_bytes
        self._written += num_bytes
        return True


def entries(folder: Path) -> Iterator[Path]:
    return folder.glob("??/*.zarr")


def entry_bytes(entry: Path) -> int:
    """Bytes of an entry's frames, which are all of one size."""
    with suppress(FileNotFoundError, NotADirectoryError):  # another process may be at it
        frames = list((entry / CHUNKS).iterdir())
        for frame in frames:
            with suppress(FileNotFoundError):  # a frame that is only begun
                return len(frames) * (frame / "0" / "0").stat().st_size
    return 0


def _drop(folder: Path, kept: Path, wanted: int) -> int:
    """Remove entries, written longest ago first, until `wanted` bytes are free; returns how many became."""
    freed = 0
    for entry in sorted(entries(folder), key=_last_written):
        if freed >= wanted:
            break
        if entry != kept:
            freed += entry_bytes(entry)
            shutil.rmtree(entry, ignore_errors=True)
    return freed


def _last_written(entry: Path) -> float:
    with suppress(FileNotFoundError):
        return (entry / CHUNKS).stat().st_mtime
    return 0.0

"""Samples of remote shards, kept on this machine's disk: the second epoch reads what the first fetched.

$GVM_CACHE names the folder, by default ~/.cache/gvmgen; $GVM_CACHE_GB bounds it, by default it leaves a tenth
of the disk free. What was not used for longest goes first. Processes may share it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from isal import isal_zlib

from shards.record import FieldRecord, canonical_json
from shards.remote import RemotePath

FREE_SHARE = 0.1  # of the disk, left free where $GVM_CACHE_GB does not say


@dataclass(frozen=True)
class Extent:
    """A sample's bytes in its tar: from its first field's to its last field's end."""

    tar: RemotePath
    fields: Mapping[str, FieldRecord]

    @property
    def start(self) -> int:
        return min(f.offset for f in self.fields.values())

    @property
    def end(self) -> int:
        return max(f.offset + f.size for f in self.fields.values())

    @property
    def name(self) -> str:
        """Another content, another name."""
        contents = [[name, f.offset, f.size, f.crc32] for name, f in sorted(self.fields.items())]
        return hashlib.sha256(canonical_json([str(self.tar), contents])).hexdigest()

    def broken(self, content: bytes) -> str | None:
        """What is wrong with these bytes; None where they are the sample's."""
        if len(content) < self.end - self.start:
            return f"its tar ends at byte {self.start + len(content)}"
        for name, f in self.fields.items():
            begin = f.offset - self.start
            if isal_zlib.crc32(memoryview(content)[begin : begin + f.size]) != f.crc32:
                return f"{name} is damaged: its checksum differs from the commit record's"
        return None


@dataclass(frozen=True)
class SampleCache:
    folder: Path
    max_bytes: int | None = None  # None: as much as leaves FREE_SHARE of the disk
    _sound: set[str] = field(default_factory=set)  # names that this process has compared with their checksums
    _room: threading.Lock = field(default_factory=threading.Lock)

    def open(self, extent: Extent) -> tuple[int, str | None]:
        """(a descriptor of the sample's bytes, None) or (-1, what is wrong with the bytes in the store).

        Raises StoreError where the store does not answer.
        """
        path = self.folder / extent.name[:2] / extent.name
        with suppress(FileNotFoundError):  # whoever makes room may remove it at any moment
            if self._is_sound(path, extent):
                os.utime(path)  # used now
                return os.open(path, os.O_RDONLY), None
        content = extent.tar.read_range(extent.start, extent.end)
        if (broken := extent.broken(content)) is not None:
            return -1, broken
        return self._keep(path, content), None

    def _is_sound(self, path: Path, extent: Extent) -> bool:
        """Whether the file is there and holds the sample; its checksums are compared once a process."""
        if path.stat().st_size != extent.end - extent.start:
            return False
        if path.name not in self._sound:
            if extent.broken(path.read_bytes()) is not None:
                return False
            self._sound.add(path.name)
        return True

    def _keep(self, path: Path, content: bytes) -> int:
        """Write the sample; a descriptor of it, good also where it is removed again to make room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._room:
            self._make_room(len(content))
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with aside.open("w+b") as file:
            try:
                file.write(content)
                file.flush()
                with suppress(FileNotFoundError):  # somebody made room with it
                    aside.rename(path)
                return os.dup(file.fileno())
            finally:
                aside.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove what was not used for longest until `needed` more bytes fit."""
        files = sorted(_files(self.folder))
        used = sum(size for _, size, _ in files)
        disk = shutil.disk_usage(self.folder)
        room = min(
            disk.free - FREE_SHARE * disk.total if self.max_bytes is None else self.max_bytes - used,
            disk.free,
        )
        for _, size, path in files:
            if room >= needed:
                return
            path.unlink(missing_ok=True)
            room += size
        if room < needed and disk.free + used < needed:
            raise OSError(
                f"{self.folder}: no room for a sample of {needed / 1e6:.0f} MB. Make room, or name another "
                "folder: export GVM_CACHE=/path"
            )


@cache
def sample_cache() -> SampleCache:
    """This machine's."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gvmgen"
    folder = Path(os.environ.get("GVM_CACHE", default)) / "samples"
    limit = os.environ.get("GVM_CACHE_GB")
    return SampleCache(folder, None if limit is None else round(float(limit) * 1e9))


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, size, path) of every sample."""
    found = []
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    return found

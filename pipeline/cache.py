"""CLIP features of source videos on disk: no frame is encoded twice, and a killed run goes on where it was.

One zarr array a source and CLIP, named by the hashes of both; one frame a chunk, each with its checksum. A
missing or a damaged chunk is never taken for features; to other readers a missing one is NaN.

Dimensions: F video frames of the source, one a second; P patches, D feature width.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache_budget import CacheBudget
from pipeline.jsonl import to_line
from pipeline.manifest import Source
from shards.spec import Fingerprint, num_frames

CHECK_BYTES = 4  # of the checksum at a chunk's end
COMPLETE = "complete"  # attribute, written last: every frame of the source is there; one that is not got lost


@dataclass(frozen=True)
class FeatureCache:
    """A folder of the features that one CLIP made."""

    folder: Path
    fingerprint: Fingerprint  # of the video encoder
    budget: CacheBudget | None = None  # None: as much as there is

    def source(self, source: Source) -> SourceFeatures:
        """The features of one source: the same for every file with its content."""
        sha256 = source.source_sha256
        path = self.folder / sha256[:2] / f"{sha256}.{self._clip_hash}.zarr"
        return SourceFeatures(path, num_frames(source.source_duration_s), self.budget)

    @cached_property
    def _clip_hash(self) -> str:
        return hashlib.sha256(to_line(self.fingerprint).encode()).hexdigest()[:16]


class SourceFeatures:
    """The features of one source, as far as they are there.

    Processes may share it: a frame is whole or absent, and whoever writes it writes the same.
    """

    def __init__(self, path: Path, num_frames: int, budget: CacheBudget | None = None) -> None:
        self.path, self.num_frames, self.budget = path, num_frames, budget
        self._array = _open(path)

    def read(self, frames: Iterable[int]) -> dict[int, np.ndarray]:
        """float16 [P, D] by frame, for those of `frames` that are there and sound; side by side in memory."""
        if self._array is None:
            return {}
        frames = list(frames)
        room = np.empty((len(frames), *self._array.shape[1:]), np.float16)  # [F, P, D]
        return {f: into for f, into in zip(frames, room, strict=True) if _read_sound(self._chunk(f), into)}

    def write(self, frame: int, features: np.ndarray) -> None:
        """Keep float16 [P, D], unless there is no room in the budget for it."""
        if self.budget is not None and not self.budget.admit(self.path, features.nbytes):
            return
        if self._array is None or not self.path.exists():  # it may have had to make room for another
            self._array = _create(self.path, (self.num_frames, *features.shape))
        self._array[frame] = features

    def mark_if_complete(self) -> None:
        """Note that every frame is there, if so."""
        if self._array is not None and self._array.nchunks_initialized == self.num_frames:
            self._array.attrs[COMPLETE] = True

    def lost(self) -> list[int]:
        """Frames that a complete entry should hold and does not, or holds damaged."""
        if self._array is None or not self._array.attrs.get(COMPLETE):
            return []
        return [frame for frame in range(self.num_frames) if not self.read([frame])]

    def discard(self, frames: Iterable[int]) -> None:
        """Forget frames that no segment needs any more, and the entry with its last; a complete one stays."""
        if self._array is None or self._array.attrs.get(COMPLETE):
            return
        for frame in frames:
            shutil.rmtree(self._chunk(frame).parents[1], ignore_errors=True)
        with suppress(OSError):  # others may be at it, and frames may be left
            (self.path / "c").rmdir()
            shutil.rmtree(self.path)
            self.path.parent.rmdir()

    def _chunk(self, frame: int) -> Path:
        """zarr's file of one frame."""
        return self.path / "c" / str(frame) / "0" / "0"


def _open(path: Path) -> Any:
    """The zarr array; None where there is none yet, or its description is damaged."""
    if not path.exists():
        return None
    import zarr  # takes a second

    with suppress(FileNotFoundError, ValueError):
        return zarr.open_array(path, mode="r+")
    return None


def _create(path: Path, shape: tuple[int, ...]) -> Any:
    """A new array; frames that an entry with a damaged description holds are there again."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.errors import ContainsArrayError

    (path / "zarr.json").unlink(missing_ok=True)
    try:
        return zarr.create_array(
            path,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="float16",
            fill_value=float("nan"),
            compressors=[Crc32cCodec()],  # features gain too little from compression to pay for it
            config={"write_empty_chunks": True},
        )
    except ContainsArrayError:  # another process was first
        return _open(path)


def _read_sound(chunk: Path, into: np.ndarray) -> bool:
    """Read a chunk as zarr writes it here: the values, then their checksum. False where it is not whole.

    zarr's own reading copies a frame several times and takes it through an event loop.
    """
    from google_crc32c import value as crc32c  # zarr brings it

    checksum = bytearray(CHECK_BYTES + 1)  # a byte more: what is too long is not whole either
    try:
        with chunk.open("rb", buffering=0) as file:
            size = os.readv(file.fileno(), [into.data.cast("B"), checksum])
    except FileNotFoundError:
        return False
    is_whole = size == into.nbytes + CHECK_BYTES
    return is_whole and int.from_bytes(checksum[:CHECK_BYTES], "little") == crc32c(into)

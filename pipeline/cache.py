"""CLIP features of source videos on disk: no frame is encoded twice, and a killed run goes on where it was.

One zarr array a source and CLIP, named by the hashes of both; one frame a chunk, each with its checksum. A
missing chunk reads as NaN and a damaged one raises, so neither is ever taken for features.

Dimensions: F video frames of the source, one a second; P patches, D feature width.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
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
        """float16 [P, D] by frame, for those of `frames` that are there and sound."""
        return {} if self._array is None else dict(_sound(self._array, frames))

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
        frames = range(self.num_frames)
        return sorted(set(frames) - set(self.read(frames)))

    def discard(self, frames: Iterable[int]) -> None:
        """Forget frames that no segment needs any more, and the entry with its last; a complete one stays."""
        if self._array is None or self._array.attrs.get(COMPLETE):
            return
        for frame in frames:
            shutil.rmtree(self.path / "c" / str(frame), ignore_errors=True)
        with suppress(OSError):  # others may be at it, and frames may be left
            (self.path / "c").rmdir()
            shutil.rmtree(self.path)
            self.path.parent.rmdir()


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


def _sound(array: Any, frames: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    for frame in frames:
        with suppress(ValueError):  # the checksum differs: half-written, or changed on the disk
            features = array[frame]
            if not np.isnan(features).any():
                yield frame, features

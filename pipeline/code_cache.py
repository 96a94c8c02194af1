"""EnCodec's codes on disk: with the features cached, too, a shard is made again at the disk's pace.

A file a segment, 12 kB for 30 s, with a checksum: a damaged one is no file.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from isal import isal_zlib

from pipeline.jsonl import to_line
from pipeline.manifest import Segment
from shards.spec import NUM_CODEBOOKS, Fingerprint, num_code_frames

CHECK_BYTES = 4  # of the checksum at a file's end


@dataclass(frozen=True)
class CodeCache:
    """The codes that one EnCodec made, by key: a key names the excerpt's content."""

    folder: Path
    fingerprint: Fingerprint  # of the codec

    def read(self, segment: Segment) -> np.ndarray | None:
        """int16 [K, T]; None where there is no sound file."""
        try:
            content = self._path(segment).read_bytes()
        except FileNotFoundError:
            return None
        data, stated = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
        if _checksum(data) != stated:
            return None
        codes = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        wanted = (NUM_CODEBOOKS, num_code_frames(segment.duration_s))
        return codes if (codes.dtype, codes.shape) == (np.int16, wanted) else None

    def write(self, segment: Segment, codes: np.ndarray) -> None:
        """Keep int16 [K, T]."""
        path = self._path(segment)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        np.lib.format.write_array(data, codes, allow_pickle=False)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_bytes(data.getvalue() + _checksum(data.getvalue()))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def discard(self, segment: Segment) -> None:
        """Forget a segment whose shard is complete, and the folders with their last."""
        path = self._path(segment)
        path.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):
            with suppress(OSError):  # others are in it, or it is gone
                folder.rmdir()

    def _path(self, segment: Segment) -> Path:
        return self.folder / "codes" / self._codec_hash / f"{segment.key}.npy"

    @cached_property
    def _codec_hash(self) -> str:
        return hashlib.sha256(to_line(self.fingerprint).encode()).hexdigest()[:16]


def _checksum(data: bytes) -> bytes:
    return isal_zlib.crc32(data).to_bytes(CHECK_BYTES, "little")

"""Sound on disk instead of in memory: an hour takes as little memory as a minute.

N waveform samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BLOCK = 1 << 20  # samples that are in memory at once


class Sound:
    """Mono samples, float32 [N], in a temporary file that goes when nobody holds the object."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.num_samples = 0
        self._file = tempfile.NamedTemporaryFile(prefix="gvmgen-", suffix=".f32")  # noqa: SIM115

    def append(self, samples: np.ndarray) -> None:
        """Add float [N'] at the end."""
        samples = np.ascontiguousarray(samples, "<f4")
        try:
            self._file.write(samples.data)
            self._file.flush()
        except OSError as error:
            complaint = f"{tempfile.gettempdir()}: no room for the music ({error.strerror})"
            raise OSError(error.errno, f"{complaint}; set TMPDIR to another folder") from error
        self.num_samples += len(samples)

    @property
    def path(self) -> Path:
        """Where the samples lie, as raw little-endian float32."""
        return Path(self._file.name)

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def samples(self) -> np.ndarray:
        """All samples, float32 [N], read from disk as they are touched; not to be written to."""
        if self.num_samples == 0:
            return np.zeros(0, np.float32)
        return np.memmap(self.path, "<f4", "r")

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Where each block of the samples starts, and the block, float32 [N']."""
        for start in range(0, self.num_samples, BLOCK):
            count = min(BLOCK, self.num_samples - start)
            yield start, np.fromfile(self.path, "<f4", count, offset=start * 4)

"""What an embedder gives. R rows (windows of the music), D width, L classes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One piece of music."""

    rows: np.ndarray  # float32 [R, D], R >= 1
    classes: np.ndarray | None = None  # float32 [L]: probabilities, where the embedder is a tagger


class Embedder(Protocol):
    """A frozen model that listens."""

    @property
    def description(self) -> str:
        """For people: which model, which weights."""

    def embed(self, waveform: np.ndarray) -> Embedding:
        """waveform: float32 [N] at 32 kHz, mono."""

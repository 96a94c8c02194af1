"""How much of a segment is silent. N waveform samples."""

from __future__ import annotations

import numpy as np

WINDOW_S = 0.4
SILENT_DB = -50.0  # dBFS of a window's RMS; music's quiet passages lie above


def silence(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """{"silence": share of 0.4-s windows below -50 dBFS}. waveform: float [N] in -1 … 1."""
    size = round(WINDOW_S * sample_rate)
    windows = waveform[: max(1, len(waveform) // size) * size].astype(np.float64)
    power = np.square(windows).reshape(-1, size if len(windows) >= size else len(windows)).mean(axis=1)
    return {"silence": round(float((power < 10 ** (SILENT_DB / 10)).mean()), 3)}

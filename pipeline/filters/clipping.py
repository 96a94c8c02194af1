"""How much of a segment is clipped. N waveform samples."""

from __future__ import annotations

import numpy as np

FULL_SCALE = 0.999  # lossy codecs overshoot and are cut there; one sample at the top is no fault
RUN = 3  # samples; shorter stays are loud, not clipped


def clipping(waveform: np.ndarray) -> dict[str, float]:
    """{"clipping": share of samples that stay at full scale for three samples or more}. waveform: float
    [N]."""
    at_top = np.concatenate(([False], np.abs(waveform) >= FULL_SCALE, [False]))
    edges = np.flatnonzero(at_top[1:] != at_top[:-1]).reshape(-1, 2)  # [runs, (begin, end)]
    lengths = edges[:, 1] - edges[:, 0]
    return {"clipping": round(float(lengths[lengths >= RUN].sum() / max(1, len(waveform))), 5)}

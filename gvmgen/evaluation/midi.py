"""MIDI files made heard, through symusic and a soundfont. N waveform samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gvmgen.evaluation.extras import needed
from shards.spec import SAMPLE_RATE


def render_midi(path: Path, soundfont: Path) -> np.ndarray:
    """float32 [N] at 32 kHz, mono. Raises ValueError for a file that is no MIDI, or no soundfont."""
    symusic = needed("symusic")
    try:
        score = symusic.Score(str(path))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as MIDI: {error}") from error
    try:
        stereo = symusic.Synthesizer(str(soundfont), SAMPLE_RATE).render(score, stereo=True)  # [2, N]
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be rendered with {soundfont}: {error}") from error
    waveform = np.asarray(stereo, np.float32).mean(axis=0)
    return waveform / max(1.0, float(np.abs(waveform).max(initial=0)))  # a synthesizer has no full scale

"""MIDI files made heard, through symusic and a soundfont. N waveform samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.pairing import MIDI
from shards.spec import SAMPLE_RATE


def check_midi(paths: Iterable[Path], soundfont: Path | None) -> None:
    """Before any work. Raises ValueError where a file is MIDI and there is nothing to render it with."""
    first = next((path for path in paths if path.suffix.lower() in MIDI), None)
    if first is None:
        return
    if soundfont is None:
        raise ValueError(f"{first}: is MIDI, and needs instruments: name a soundfont, --soundfont FILE.sf2")
    if not soundfont.is_file():
        raise ValueError(f"--soundfont {soundfont}: no such file")
    needed("symusic")


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

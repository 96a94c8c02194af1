"""The model in the box goes on in the key of the music it is given."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("librosa", reason="librosa tells the pitches")

import librosa

from gvmgen.encoders.media import write_waveform
from gvmgen.generate import Composer, Music
from gvmgen.runs import MODEL_IN_THE_BOX
from shards.spec import SAMPLE_RATE

EXAMPLE = MODEL_IN_THE_BOX.parent / "example.mp4"
SEMITONES = (2, 5)  # to keys that the video's own music does not take


def pitches(waveform: np.ndarray) -> np.ndarray:
    """[12], unit length: how much of each pitch class sounds."""
    chroma = librosa.feature.chroma_stft(y=waveform, sr=SAMPLE_RATE, n_fft=8192, tuning=0.0, norm=None)
    found = np.sqrt(chroma).sum(axis=1)
    return np.asarray(found / np.linalg.norm(found))


def distance(takes: list[Music], before: np.ndarray) -> float:
    return float(np.mean([1 - pitches(take.waveform) @ pitches(before) for take in takes]))


def test_music_goes_on_in_the_key_of_the_music_before(tmp_path: Path) -> None:
    composer = Composer.load(str(MODEL_IN_THE_BOX), device="cpu")
    path = tmp_path / "before.wav"
    free = composer.takes(EXAMPLE, 8, duration_s=6)
    distances = []
    for own, n_steps in product(composer.takes(EXAMPLE, 4, seed=20, duration_s=6), SEMITONES):
        before = librosa.effects.pitch_shift(own.waveform, sr=SAMPLE_RATE, n_steps=n_steps)
        write_waveform(path, before)
        going_on = composer.takes(EXAMPLE, 4, duration_s=6, continue_from=path)
        distances.append((distance(going_on, before), distance(free, before)))
    near, far = np.mean(distances, axis=0)  # of one piece the ratio is anything from 0.6 to 0.95
    assert near < 0.85 * far

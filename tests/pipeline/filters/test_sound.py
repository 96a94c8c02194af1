"""Silence, clipping and loudness of signals with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.filters.clipping import clipping
from pipeline.filters.loudness import loudness
from pipeline.filters.silence import silence

RATE = 32_000


def tone(amplitude: float, seconds: float = 5.0, hertz: float = 997.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(
        np.float32
    )


def test_silence_is_the_share_of_silent_time() -> None:
    half_silent = np.concatenate([tone(0.1, 4), np.zeros(4 * RATE, np.float32)])
    assert silence(half_silent, RATE) == {"silence": 0.5}
    assert silence(tone(0.1), RATE) == {"silence": 0.0}


def test_hiss_below_fifty_decibels_is_silence_and_quiet_music_is_not() -> None:
    assert silence(tone(0.002), RATE) == {"silence": 1.0}  # -57 dBFS
    assert silence(tone(0.01), RATE) == {"silence": 0.0}  # -43 dBFS


def test_a_piece_shorter_than_a_window_has_an_answer() -> None:
    assert silence(np.zeros(10, np.float32), RATE) == {"silence": 1.0}
    assert loudness(np.zeros(10, np.float32), RATE) == {"loudness": -70.0}
    assert clipping(np.zeros(0, np.float32)) == {"clipping": 0.0}


def test_clipping_counts_stays_at_full_scale_and_no_single_peaks() -> None:
    wave = np.zeros(1000, np.float32)
    wave[100:150] = 1.0
    wave[300:350] = -1.0
    wave[500] = wave[600] = wave[601] = 1.0
    assert clipping(wave) == {"clipping": 0.1}


def test_an_overdriven_tone_is_clipped_and_a_full_scale_one_hardly() -> None:
    assert clipping(np.clip(tone(2.0), -1, 1))["clipping"] > 0.5
    assert clipping(tone(0.99)) == {"clipping": 0.0}


@pytest.mark.parametrize(("amplitude", "lufs"), [(1.0, -3.01), (0.1, -23.01), (0.01, -43.01)])
def test_loudness_of_the_standards_own_tone(amplitude: float, lufs: float) -> None:
    """BS.1770: 997 Hz at 0 dBFS in one channel reads -3.01."""
    assert loudness(tone(amplitude), RATE)["loudness"] == pytest.approx(lufs, abs=0.1)


def test_loudness_weights_bass_down_and_treble_up() -> None:
    bass, middle, treble = (loudness(tone(0.1, hertz=hertz), RATE)["loudness"] for hertz in (30, 997, 8000))
    assert bass < middle - 6
    assert middle + 3 < treble < middle + 4.5


def test_pauses_are_gated_out_of_the_loudness() -> None:
    paused = np.concatenate([tone(0.1), np.zeros(5 * RATE, np.float32)])
    assert loudness(paused, RATE)["loudness"] == pytest.approx(-23.0, abs=0.3)

"""MIDI that a system wrote is heard through a soundfont, at the right time and pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gvmgen.evaluation.measuring import read_music
from gvmgen.evaluation.midi import render_midi
from shards.spec import SAMPLE_RATE
from tests.gvmgen.evaluation.made_soundfont import make_soundfont

symusic = pytest.importorskip("symusic")


@pytest.fixture
def soundfont(tmp_path: Path) -> Path:
    return make_soundfont(tmp_path / "sine.sf2")


@pytest.fixture
def melody(tmp_path: Path) -> Path:
    """Silence for a second, then an A of 440 Hz, then one an octave higher; a second each."""
    score = symusic.Score(480, ttype="tick")
    score.tempos.append(symusic.Tempo(0, 120.0))  # 480 ticks a quarter, 2 quarters a second
    track = symusic.Track("", 0, False)
    for start, pitch in ((960, 69), (1920, 81)):
        track.notes.append(symusic.Note(start, 960, pitch, 100))
    score.tracks.append(track)
    score.dump_midi(str(tmp_path / "melody.mid"))
    return tmp_path / "melody.mid"


def pitch(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(waveform))


def test_notes_sound_when_and_as_high_as_they_are_written(melody: Path, soundfont: Path) -> None:
    waveform = render_midi(melody, soundfont)
    first, second, third = (waveform[i * SAMPLE_RATE : (i + 1) * SAMPLE_RATE] for i in range(3))
    assert np.abs(first[: SAMPLE_RATE // 2]).max() < 1e-3
    assert pitch(second[2000:-2000]) == pytest.approx(441, abs=3)
    assert pitch(third[2000:-2000]) == pytest.approx(882, abs=3)
    assert 0.001 < np.abs(waveform).max() <= 1


def test_midi_counts_as_far_as_the_film_goes(melody: Path, soundfont: Path) -> None:
    waveform, full_s = read_music(melody, 1.5, soundfont)
    assert len(waveform) == 1.5 * SAMPLE_RATE
    assert full_s >= 3


def test_a_file_that_is_no_midi_is_named(tmp_path: Path, soundfont: Path, melody: Path) -> None:
    (tmp_path / "broken.mid").write_bytes(b"no midi")
    with pytest.raises(ValueError, match=r"broken\.mid: cannot be read as MIDI"):
        render_midi(tmp_path / "broken.mid", soundfont)
    (tmp_path / "broken.sf2").write_bytes(b"no soundfont")
    with pytest.raises(ValueError, match=r"cannot be rendered with .*broken\.sf2"):
        render_midi(melody, tmp_path / "broken.sf2")

"""Tempo, key, loudness and the fit to the picture, of tones and films whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gvmgen.encoders.media import MediaError
from gvmgen.evaluation.content import cut_alignment, energy_motion, onset_motion
from gvmgen.evaluation.motion import GRID_RATE, Motion, measure_motion
from gvmgen.evaluation.sound import _MAJOR, STEP_RATE, key_agreement, measure_sound, tempo_agreement
from shards.spec import SAMPLE_RATE
from tests.gvmgen.evaluation.made_pairs import CUTS_S, chords, clicks, make_film, noise
from tests.media import make_sound_only

pytest.importorskip("librosa")
pytest.importorskip("pyloudnorm")
C_MAJOR, A_MINOR_TONIC = (261.63, 329.63, 392.0), (220.0, 261.63, 329.63)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Motion:
    return measure_motion(make_film(tmp_path_factory.mktemp("film") / "film.mp4"))


def test_cuts_and_motion_are_found_where_they_are(film: Motion) -> None:
    assert film.cuts.tolist() == pytest.approx(list(CUTS_S), abs=0.06)
    assert film.duration_s == pytest.approx(9.0, abs=0.06)
    loudest = np.sort(np.argsort(film.curve)[-len(CUTS_S) :]) / GRID_RATE
    assert loudest.tolist() == pytest.approx(list(CUTS_S), abs=0.11)


def test_a_file_without_a_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"tone\.wav: has no picture"):
        measure_motion(make_sound_only(tmp_path / "tone.wav"))


def test_music_on_the_cuts_fits_and_fits_less_the_more_it_is_shifted(film: Motion) -> None:
    grades = []
    for shift_s in (0.0, 0.15, 0.6):
        sound = measure_sound(clicks(np.array(CUTS_S) + shift_s, 9.0))
        grades.append(
            (cut_alignment(sound.onsets, film), onset_motion(sound, film), energy_motion(sound, film))
        )
    for of_metric in zip(*grades, strict=True):
        assert list(of_metric) == sorted(of_metric, reverse=True)
    aligned, onset, energy = grades[0]
    assert aligned > 0.7
    assert onset > 0.8
    assert energy > 0.4
    assert abs(grades[2][0]) < 0.3


def test_music_of_another_film_fits_worse(film: Motion) -> None:
    own, other = (measure_sound(clicks(t, 9.0)) for t in (np.array(CUTS_S), np.array([0.6, 2.9, 4.5, 6.7])))
    assert onset_motion(other, film) < 0.3 < onset_motion(own, film)
    assert cut_alignment(other.onsets, film) < 0.3


def test_noise_over_the_music_hides_its_events(film: Motion) -> None:
    events = clicks(np.array(CUTS_S), 9.0)
    clean, noisy = measure_sound(events), measure_sound(events + noise(9.0, 0.3))
    assert onset_motion(noisy, film) < onset_motion(clean, film)
    assert energy_motion(noisy, film) < energy_motion(clean, film)


def test_a_picture_that_moves_as_the_music_does_correlates_fully() -> None:
    sound = measure_sound(clicks(np.array(CUTS_S), 9.0) + noise(9.0, 0.01))
    onset = sound.onset[: 9 * STEP_RATE].reshape(-1, STEP_RATE // GRID_RATE).sum(axis=1)
    for measure, curve in ((onset_motion, onset), (energy_motion, sound.level - sound.level.min())):
        alike = Motion(curve=np.expm1(curve), cuts=np.zeros(0), duration_s=9.0)
        opposite = Motion(curve=np.expm1(curve.max() - curve), cuts=np.zeros(0), duration_s=9.0)
        assert measure(sound, alike) == pytest.approx(1, abs=1e-4)
        assert measure(sound, opposite) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("distance_s", [0.0, 0.1, 0.2])
def test_a_beat_beside_a_cut_earns_the_bell_of_its_distance_less_chance(distance_s: float) -> None:
    motion = Motion(curve=np.zeros(1000, np.float32), cuts=np.array([50.0]), duration_s=100.0)
    chance = np.sqrt(2 * np.pi) * 0.1 / 100  # the area under the bell, spread over the film
    bell = np.exp(-((distance_s / 0.1) ** 2) / 2)
    assert cut_alignment(np.array([50 - distance_s]), motion) == pytest.approx(bell - chance, abs=5e-3)


def test_beats_at_any_place_earn_nothing(film: Motion) -> None:
    """A machine gun hits every cut; so it does when shifted."""
    dense = np.arange(0, 9, 0.11)
    assert abs(cut_alignment(dense, film)) < 0.2


def test_where_nothing_moves_nothing_is_claimed_and_silence_earns_nothing(film: Motion) -> None:
    still = Motion(curve=np.zeros(90, np.float32), cuts=np.zeros(0), duration_s=9.0)
    sound, silence = (
        measure_sound(clicks(np.array(CUTS_S), 9.0)),
        measure_sound(np.zeros(9 * SAMPLE_RATE, "f")),
    )
    assert np.isnan(
        [onset_motion(sound, still), energy_motion(sound, still), cut_alignment(sound.beats, still)]
    ).all()
    assert (onset_motion(silence, film), energy_motion(silence, film)) == (0, 0)
    assert cut_alignment(silence.onsets, film) == 0


@pytest.mark.parametrize("tempo", [90, 120])
def test_the_tempo_of_a_metronome(tempo: int) -> None:
    found = measure_sound(clicks(np.arange(0, 12, 60 / tempo), 12.0))
    assert tempo_agreement(found.tempo, tempo) == 1
    period = np.median(np.diff(found.beats))
    assert period == pytest.approx(60 / found.tempo, rel=0.05)


def test_the_key_of_a_cadence() -> None:
    f_major, g_major = (174.61, 220.0, 261.63), (196.0, 246.94, 293.66)
    assert measure_sound(chords(C_MAJOR, f_major, g_major, C_MAJOR)).key == "C major"
    d_minor, e_major = (146.83, 174.61, 220.0), (164.81, 207.65, 246.94)
    assert measure_sound(chords(A_MINOR_TONIC, d_minor, e_major, A_MINOR_TONIC)).key == "A minor"


def test_notes_at_random_make_a_key_less_clear() -> None:
    scale = chords(*((261.63 * 2 ** (step / 12),) for step in (0, 2, 4, 5, 7, 9, 11, 12)), each_s=0.4)
    all_twelve = chords(*((261.63 * 2 ** (step / 12),) for step in range(12)), each_s=0.4)
    assert measure_sound(all_twelve).key_clarity < 0.5 < measure_sound(scale).key_clarity


def test_pitches_as_strong_as_in_a_profile_make_its_key_fully_clear() -> None:
    seconds = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * 261.63 * 2 ** (step / 12) * seconds) for step in range(12)]
    found = measure_sound(0.02 * np.dot(_MAJOR, tones).astype(np.float32))
    assert found.key == "C major"
    assert found.key_clarity == pytest.approx(1, abs=0.05)  # neighbouring semitones leak into each other


@pytest.mark.parametrize(
    ("key", "reference", "score"),
    [
        ("C major", "C major", 1.0),
        ("G major", "C major", 0.5),
        ("F major", "C major", 0.0),
        ("A minor", "C major", 0.3),
        ("C major", "A minor", 0.3),
        ("C minor", "C major", 0.2),
        ("F# minor", "C major", 0.0),
    ],
)
def test_keys_agree_by_the_weights_of_mirex(key: str, reference: str, score: float) -> None:
    assert key_agreement(key, reference) == score


def test_tempi_agree_within_four_per_cent_of_the_double_too() -> None:
    assert tempo_agreement(124, 120) == tempo_agreement(60, 120) == tempo_agreement(239, 120) == 1
    assert tempo_agreement(126, 120) == tempo_agreement(90, 120) == 0


def test_loudness_silence_and_clipping_of_known_sounds() -> None:
    seconds = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.1 * np.sin(2 * np.pi * 997 * seconds)).astype(np.float32)
    found = measure_sound(tone)
    assert found.loudness == pytest.approx(-23.01, abs=0.1)  # BS.1770: a sine at -20 dBFS
    assert (found.silence, found.clipping, found.duration_s) == (0, 0, 4)
    half = tone.copy()
    half[: len(half) // 2] = 0
    assert measure_sound(half).silence == pytest.approx(0.5, abs=0.03)
    assert measure_sound(tone / 2).loudness == pytest.approx(found.loudness - 6.02, abs=0.01)
    for gain, share in ((20, 1 - 2 / np.pi * np.arcsin(1 / 2)), (40, 1 - 2 / np.pi * np.arcsin(1 / 4))):
        assert measure_sound(np.clip(gain * tone, -1, 1)).clipping == pytest.approx(share, abs=0.002)


def test_silence_and_a_blink_of_sound_are_measured_without_a_complaint() -> None:
    nothing = measure_sound(np.zeros(SAMPLE_RATE, np.float32))
    assert (nothing.loudness, nothing.silence, nothing.key) == (-70, 1, "")
    assert np.isnan(nothing.tempo)
    assert measure_sound(clicks(np.array([0.0]), 0.1)).duration_s == pytest.approx(0.1)

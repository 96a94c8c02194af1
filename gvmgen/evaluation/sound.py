"""What one piece of music is like: tempo, key, loudness, silence, clipping, and its curves over time.

Through librosa and pyloudnorm. Shapes: N waveform samples, T steps of 20 ms, G steps of the common grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.motion import GRID_RATE
from shards.spec import SAMPLE_RATE

STEP_RATE = 50  # Hz; of the onset curve
_HOP = SAMPLE_RATE // STEP_RATE
_PITCH_WINDOW = 8192  # samples; tell semitones apart from 130 Hz up
_FLOOR_DB = -100.0
SILENCE_DB = -60.0  # RMS of a step of the grid, re full scale; below it, it is silent
_CLIP_LEVEL = 0.999  # of full scale
_NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
# Krumhansl and Kessler 1982, as printed in Krumhansl, Cognitive Foundations of Musical Pitch, 1990, p. 30.
_MAJOR = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a piece of music goes over time: all that is held against a picture."""

    onset: np.ndarray  # float32 [T]; onset strength
    level: np.ndarray  # float32 [G]; RMS in dB re full scale
    onsets: np.ndarray  # float64; seconds


@dataclass(frozen=True, kw_only=True)
class Sound(Course):
    """One piece of music. A value is NaN, the key empty, where silence leaves nothing to measure."""

    duration_s: float
    tempo: float  # beats a minute
    key: str  # such as "A minor"
    key_clarity: float  # -1 … 1; how well the pitches fit that key
    loudness: float  # LUFS, integrated (BS.1770); -70 for silence
    silence: float  # share of time below -60 dB
    clipping: float  # share of samples at full scale
    beats: np.ndarray  # float64; seconds


def measure_course(waveform: np.ndarray) -> Course:
    """waveform: float32 [N] at 32 kHz, mono."""
    level, onset = _level(waveform), _onset_strength(waveform)
    return Course(level=level, onset=onset, onsets=np.zeros(0) if _is_silent(level) else _onsets(onset))


def measure_sound(waveform: np.ndarray) -> Sound:
    """waveform: float32 [N] at 32 kHz, mono."""
    course = measure_course(waveform)
    level = course.level
    tempo, beats = _beats(course.onset) if len(course.onsets) else (float("nan"), np.zeros(0))
    key, clarity = ("", np.nan) if _is_silent(level) else _key(waveform)
    return Sound(
        **vars(course),
        duration_s=len(waveform) / SAMPLE_RATE,
        tempo=tempo,
        key=key,
        key_clarity=clarity,
        loudness=_loudness(waveform),
        silence=float((level < SILENCE_DB).mean()),
        clipping=float((np.abs(waveform) >= _CLIP_LEVEL).mean()),
        beats=beats,
    )


def _is_silent(level: np.ndarray) -> bool:
    return bool((level < SILENCE_DB).all())


def _level(waveform: np.ndarray) -> np.ndarray:
    """[N] -> [G], dB."""
    size = SAMPLE_RATE // GRID_RATE
    padded = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size).astype(np.float64)
    power = np.square(padded).mean(axis=1)
    return (10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))).astype(np.float32)


def _onset_strength(waveform: np.ndarray) -> np.ndarray:
    strength = needed("librosa").onset.onset_strength(y=waveform, sr=SAMPLE_RATE, hop_length=_HOP)
    return np.asarray(strength, np.float32)


def _onsets(onset: np.ndarray) -> np.ndarray:
    """Seconds; none where nothing ever starts."""
    found = needed("librosa").onset.onset_detect(
        onset_envelope=onset, sr=SAMPLE_RATE, hop_length=_HOP, units="time"
    )
    return np.asarray(found, float)


def _beats(onset: np.ndarray) -> tuple[float, np.ndarray]:
    """Tempo in beats a minute, beats in seconds."""
    tempo, beats = needed("librosa").beat.beat_track(
        onset_envelope=onset, sr=SAMPLE_RATE, hop_length=_HOP, units="time"
    )
    return float(np.ravel(tempo)[0]), np.asarray(beats)


def _key(waveform: np.ndarray) -> tuple[str, float]:
    """The key whose profile correlates best with the pitches, and that correlation."""
    # Tuning 0, as estimating it costs more than all else.
    chroma = needed("librosa").feature.chroma_stft(
        y=np.pad(waveform, (0, max(0, _PITCH_WINDOW - len(waveform)))),
        sr=SAMPLE_RATE,
        n_fft=_PITCH_WINDOW,
        hop_length=SAMPLE_RATE // GRID_RATE,
        tuning=0.0,
        norm=None,
    )
    pitches = np.sqrt(chroma).sum(axis=1)  # loud notes do not drown the others
    if not np.ptp(pitches):
        return "", float("nan")
    names, profiles = _profiles()
    fit = profiles @ (pitches - pitches.mean()) / (np.linalg.norm(pitches - pitches.mean()))
    return names[int(fit.argmax())], float(fit.max())


@cache
def _profiles() -> tuple[list[str], np.ndarray]:
    """24 keys and their profiles [24, 12], each of mean 0 and norm 1."""
    names = [f"{note} {mode}" for mode in ("major", "minor") for note in _NOTES]
    rows = np.array([np.roll(profile, tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)])
    rows -= rows.mean(axis=1, keepdims=True)
    return names, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _loudness(waveform: np.ndarray) -> float:
    meter = needed("pyloudnorm").Meter(SAMPLE_RATE)
    least = round(meter.block_size * SAMPLE_RATE)
    padded = np.pad(waveform, (0, max(0, least - len(waveform)))).astype(np.float64)
    with np.errstate(divide="ignore"):
        return max(-70.0, float(meter.integrated_loudness(padded)))


def key_agreement(key: str, reference: str) -> float:
    """MIREX's weights: 1 the same key, 0.5 a fifth above, 0.3 relative, 0.2 parallel, else 0."""
    (tonic, mode), (wanted, wanted_mode) = (name.split() for name in (key, reference))
    steps = (_NOTES.index(tonic) - _NOTES.index(wanted)) % 12
    if mode == wanted_mode:
        return {0: 1.0, 7: 0.5}.get(steps, 0.0)
    relative = 9 if wanted_mode == "major" else 3
    return {relative: 0.3, 0: 0.2}.get(steps, 0.0)


def tempo_agreement(tempo: float, reference: float) -> float:
    """MIREX's accuracy 2: 1 within 4 % of the reference, its double, triple, half or third, else 0."""
    return float(any(abs(tempo - reference * f) <= 0.04 * reference * f for f in (1, 2, 3, 1 / 2, 1 / 3)))

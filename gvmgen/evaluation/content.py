"""How music follows a picture over time. G steps of the common grid; times in seconds."""

from __future__ import annotations

import numpy as np

from gvmgen.evaluation.motion import GRID_RATE, Motion
from gvmgen.evaluation.sound import SILENCE_DB, STEP_RATE, Course

SMOOTHING_S = 0.2  # standard deviation; how far apart an event in sound and picture may be felt as one
ALIGNMENT_S = 0.1  # standard deviation of the reward for a beat beside a cut
_LEAST_S = 3.0  # shorter curves correlate by chance alone
_STILL = 1e-6  # norm of a curve that never changes
_SHIFTS = 64  # of the chance level of the alignment


def onset_motion(sound: Course, motion: Motion) -> float:
    """Correlation, -1 … 1, of onset strength and motion; 0 for silence, NaN where nothing moves."""
    steps = STEP_RATE // GRID_RATE
    whole = len(sound.onset) // steps * steps
    return _correlation(sound.onset[:whole].reshape(-1, steps).sum(axis=1), motion.curve)


def energy_motion(sound: Course, motion: Motion) -> float:
    """Correlation, -1 … 1, of the sound's level in dB and motion; 0 for silence, NaN where nothing moves."""
    return _correlation(np.maximum(sound.level, SILENCE_DB), motion.curve)


def cut_alignment(times: np.ndarray, motion: Motion) -> float:
    """How near beats or onsets are to cuts: -1 … 1, 0 what shifted ones reach. NaN without cuts.

    The reward of a cut is exp(-d² / 2σ²), d its distance to the nearest time: the beat alignment of AIST++
    (Li et al. 2021, arXiv 2101.08779), with cuts for the dancer's beats. Dense beats would reach 1 anywhere:
    the mean over circular shifts, which is the level of chance, is taken off.
    """
    if not len(motion.cuts):
        return float("nan")
    if not len(times):
        return 0.0
    # Shifts as uneven as the golden ratio's multiples: no tempo falls in step with them.
    offsets = (np.arange(1, _SHIFTS + 1) * 0.6180339887 % 1) * motion.duration_s
    shifted = (times[None] + offsets[:, None]) % motion.duration_s  # [shifts, times]
    return _reward(times[None], motion.cuts) - _reward(shifted, motion.cuts)


def _reward(times: np.ndarray, cuts: np.ndarray) -> float:
    """The mean over cuts [C] and rows of times [R, times]."""
    rows = np.sort(times, axis=1)
    after = np.stack([row.searchsorted(cuts) for row in rows])  # [R, C]
    neighbours = np.stack([np.maximum(after - 1, 0), np.minimum(after, rows.shape[1] - 1)])  # [2, R, C]
    distance = np.abs(np.take_along_axis(rows[None], neighbours, axis=2) - cuts).min(axis=0)
    return float(np.exp(-(distance**2) / (2 * ALIGNMENT_S**2)).mean())


def _correlation(sound: np.ndarray, motion: np.ndarray) -> float:
    """Pearson's, of smoothed curves [G], as far as both go. A cut is no more than lively motion: log."""
    size = min(len(sound), len(motion))
    if size < _LEAST_S * GRID_RATE:
        return float("nan")
    a, b = _smooth(sound[:size]), _smooth(np.log1p(motion[:size]))
    a, b = a - a.mean(), b - b.mean()
    if np.linalg.norm(b) < _STILL:
        return float("nan")
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) if np.linalg.norm(a) > _STILL else 0.0


def _smooth(curve: np.ndarray) -> np.ndarray:
    width = round(3 * SMOOTHING_S * GRID_RATE)
    kernel = np.exp(-(np.arange(-width, width + 1) ** 2) / (2 * (SMOOTHING_S * GRID_RATE) ** 2))
    padded = np.pad(curve.astype(np.float64), width, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")

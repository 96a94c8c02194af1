"""What one hears in a piece, second by second: onsets, register, accents, instrument family, key. NumPy only.

N waveform samples at 32 kHz, T analysis frames of 10 ms, M mel bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 32_000
HOP = 320  # samples, 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
MAJOR_DEGREES = (0, 2, 4, 5, 7, 9, 11)


def power_spectrum(waveform: np.ndarray, window: int) -> np.ndarray:
    """[N] -> [T, window / 2 + 1], T = N / 320, frames centred on their time."""
    padded = np.pad(waveform.astype(np.float32), window // 2)
    count = len(waveform) // HOP
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::HOP][:count]
    return np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32))) ** 2


def mel_bands(window: int, count: int, low_hz: float = 60.0, high_hz: float = 15_500.0) -> np.ndarray:
    """Triangles on the mel scale, [window / 2 + 1, M]."""
    to_mel, to_hz = (lambda f: 2595 * np.log10(1 + f / 700)), (lambda m: 700 * (10 ** (m / 2595) - 1))
    edges = to_hz(np.linspace(to_mel(low_hz), to_mel(high_hz), count + 2))
    bins = np.arange(window // 2 + 1)[:, None] * SAMPLE_RATE / window
    spread = SAMPLE_RATE / window
    rising = (bins - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], spread)
    falling = (edges[2:] - bins) / np.maximum(edges[2:] - edges[1:-1], spread)
    return np.clip(np.minimum(rising, falling), 0, None)


def onset_strength(waveform: np.ndarray) -> np.ndarray:
    """[T]: how much louder the bands grow in 30 ms, in dB, averaged over 40 bands (spectral flux)."""
    level = 10 * np.log10(power_spectrum(waveform, 1024) @ mel_bands(1024, 40) + 1e-3)
    rise = np.zeros(len(level))
    rise[3:] = np.clip(level[3:] - level[:-3], 0, None).mean(axis=1)
    return rise


def onset_times(waveform: np.ndarray, threshold_db: float = 1.0, gap: int = 7) -> np.ndarray:
    """Seconds of the peaks of the onset strength that stand out of their surroundings."""
    strength = onset_strength(waveform)
    padded = np.pad(strength, 40, mode="edge")
    local = np.lib.stride_tricks.sliding_window_view(padded, 81).mean(axis=1)
    highest = np.lib.stride_tricks.sliding_window_view(np.pad(strength, gap), 2 * gap + 1).max(axis=1)
    is_peak = (strength >= highest) & (strength > local + threshold_db)
    return np.flatnonzero(is_peak) / FRAMES_PER_SECOND


def onsets_per_second(waveform: np.ndarray) -> np.ndarray:
    """[seconds]: onsets in each second."""
    seconds = len(waveform) // SAMPLE_RATE
    return np.histogram(onset_times(waveform), bins=np.arange(seconds + 1))[0].astype(float)


def semitone_levels(waveform: np.ndarray) -> np.ndarray:
    """[seconds, 60]: log power in semitones from MIDI 36 on, of what is held; hits are medianed away."""
    power = power_spectrum(waveform, 4096)[::4]
    padded = np.pad(power, ((3, 3), (0, 0)), mode="edge")
    held = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=0), axis=-1)
    hertz = np.fft.rfftfreq(4096, 1 / SAMPLE_RATE)
    midi = 69 + 12 * np.log2(np.maximum(hertz, 1) / 440)
    bands = np.clip(1 - np.abs(midi[:, None] - np.arange(36, 96)), 0, None)
    bands[np.abs(midi[:, None] - np.arange(36, 96)).argmin(0), np.arange(60)] = (
        1.0  # a low semitone has one bin
    )
    seconds = len(held) // (FRAMES_PER_SECOND // 4)
    levels = (held @ bands)[: seconds * 25].reshape(seconds, 25, -1).mean(axis=1)
    levels = np.log10(levels + 1e-4)
    return levels - levels.mean(axis=1, keepdims=True)


@dataclass(frozen=True)
class PitchEar:
    """Tells the mean pitch of a second: ridge regression on the levels of semitones."""

    weights: np.ndarray

    @classmethod
    def learn(cls, levels: np.ndarray, pitches: np.ndarray, ridge: float = 3.0) -> PitchEar:
        """levels [n, 60]; pitches [n], MIDI."""
        inputs = cls._inputs(levels)
        square = inputs.T @ inputs + ridge * np.eye(inputs.shape[1])
        return cls(np.linalg.solve(square, inputs.T @ pitches))

    def tell(self, levels: np.ndarray) -> np.ndarray:
        """[n], MIDI."""
        return self._inputs(levels) @ self.weights

    @staticmethod
    def _inputs(levels: np.ndarray) -> np.ndarray:
        return np.concatenate([levels, levels**2, np.ones((len(levels), 1))], axis=1)


def accent_strength(waveform: np.ndarray) -> np.ndarray:
    """[T]: how much louder the cymbals' band (7-15 kHz) is during 0.4 s after than 0.2 s before, in dB."""
    power = power_spectrum(waveform, 1024)
    hertz = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    band = power[:, (hertz > 7000) & (hertz < 15_000)].mean(axis=1) + 1e-4
    total = np.concatenate([[0.0], np.cumsum(np.log10(band))])
    frames = np.arange(len(band))
    after = (total[np.minimum(frames + 40, len(band))] - total[frames]) / 40
    before = (total[frames] - total[np.maximum(frames - 20, 0)]) / np.maximum(np.minimum(frames, 20), 1)
    strength = 10 * (after - before)
    strength[:20] = 0.0
    strength[-40:] = 0.0
    return strength


def accent_times(waveform: np.ndarray, threshold_db: float) -> np.ndarray:
    """Seconds of accents, at least a second apart."""
    strength = accent_strength(waveform)
    highest = np.lib.stride_tricks.sliding_window_view(np.pad(strength, 50), 101).max(axis=1)
    return np.flatnonzero((strength >= highest) & (strength > threshold_db)) / FRAMES_PER_SECOND


def matches(found: np.ndarray, wanted: np.ndarray, tolerance_s: float = 0.5) -> tuple[int, int, int]:
    """(hits, found, wanted): each wanted time answers to one found time at most."""
    left = list(found)
    hits = 0
    for time in wanted:
        nearest = min(left, key=lambda f: abs(f - time), default=None)
        if nearest is not None and abs(nearest - time) <= tolerance_s:
            left.remove(nearest)
            hits += 1
    return hits, len(found), len(wanted)


def f1(counts: np.ndarray) -> float:
    """F1 of summed (hits, found, wanted) rows."""
    hits, found, wanted = np.sum(counts, axis=0)
    return float(2 * hits / max(1, found + wanted))


def timbre(waveform: np.ndarray) -> np.ndarray:
    """[seconds, 2 * 48]: mean and deviation of log-mel bands, level removed."""
    level = np.log10(power_spectrum(waveform, 2048) @ mel_bands(2048, 48, high_hz=8000) + 1e-2)
    level -= level.mean(axis=1, keepdims=True)
    seconds = len(level) // FRAMES_PER_SECOND
    windows = level[: seconds * FRAMES_PER_SECOND].reshape(seconds, FRAMES_PER_SECOND, -1)
    motion = np.abs(np.diff(windows, axis=1)).mean(axis=1)
    return np.concatenate([windows.mean(axis=1), windows.std(axis=1), motion], axis=1)


@dataclass(frozen=True)
class FamilyEar:
    """Tells the instrument family of a second: softmax regression on standardised timbre."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    @classmethod
    def learn(cls, timbres: np.ndarray, families: np.ndarray, rounds: int = 600) -> FamilyEar:
        """timbres [n, D]; families int [n]."""
        mean, scale = timbres.mean(0), timbres.std(0) + 1e-6
        ear = cls(mean, scale, np.zeros((timbres.shape[1] + 1, families.max() + 1)))
        inputs, wanted = ear._inputs(timbres), np.eye(families.max() + 1)[families]
        weights, speed = ear.weights, np.zeros_like(ear.weights)
        for _ in range(rounds):
            scores = inputs @ weights
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            gradient = inputs.T @ (shares - wanted) / len(inputs) + 1e-4 * weights
            speed = 0.9 * speed - 0.1 * gradient
            weights = weights + speed
        return cls(mean, scale, weights)

    def tell(self, timbres: np.ndarray) -> np.ndarray:
        """int [n]."""
        return (self._inputs(timbres) @ self.weights).argmax(1)

    def _inputs(self, timbres: np.ndarray) -> np.ndarray:
        return np.concatenate([(timbres - self.mean) / self.scale, np.ones((len(timbres), 1))], axis=1)


def in_key_share(waveform: np.ndarray) -> float:
    """Share of the pitched energy (100-1500 Hz, spectral peaks) that lies in the best of the twelve keys."""
    power = power_spectrum(waveform, 8192)[::10]
    hertz = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    heard = (hertz > 100) & (hertz < 1500)
    power, midi = power[:, heard], 69 + 12 * np.log2(hertz[heard] / 440)
    is_peak = np.zeros(power.shape, bool)
    is_peak[:, 1:-1] = (power[:, 1:-1] > power[:, :-2]) & (power[:, 1:-1] > power[:, 2:])
    is_peak &= power > 0.02 * power.max(axis=1, keepdims=True)
    classes = np.round(midi).astype(int) % 12
    energy = np.bincount(classes, weights=(power * is_peak).sum(0), minlength=12)
    keys = [sum(energy[(tonic + d) % 12] for d in MAJOR_DEGREES) for tonic in range(12)]
    return float(max(keys) / max(energy.sum(), 1e-9))


def longest_silence_s(waveform: np.ndarray, floor_db: float = -55.0) -> float:
    """Longest stretch in seconds whose level stays under the floor, of full scale."""
    count = len(waveform) // HOP
    level = 10 * np.log10(np.mean(waveform[: count * HOP].reshape(count, HOP) ** 2, axis=1) + 1e-12)
    longest = current = 0
    for quiet in level < floor_db:
        current = current + 1 if quiet else 0
        longest = max(longest, current)
    return longest / FRAMES_PER_SECOND


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(*ranks)[0, 1])

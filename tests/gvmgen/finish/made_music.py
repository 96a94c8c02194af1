"""Sounds whose loudness, peaks and ending are known, and files read back through PyAV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from gvmgen.finish.sound import Sound

RATE = 32_000


def as_sound(samples: np.ndarray) -> Sound:
    sound = Sound(RATE)
    sound.append(samples)
    return sound


def tone(duration_s: float, level: float = 0.1, pitch: float = 440.0) -> np.ndarray:
    """float64 [N], a sine."""
    return level * np.sin(2 * np.pi * pitch * np.arange(round(duration_s * RATE)) / RATE)


def beats(duration_s: float, level: float = 0.3) -> np.ndarray:
    """float64 [N], plucked notes twice a second: quiet on average, with high peaks."""
    times = np.arange(round(duration_s * RATE)) / RATE
    return level * np.sin(2 * np.pi * 220 * times) * np.exp(-20 * (times % 0.5))


def noise_bursts(duration_s: float) -> np.ndarray:
    """float64 [N], noise up to the highest frequency, with bursts above full scale."""
    num_samples = round(duration_s * RATE)
    burst = np.arange(num_samples) % (RATE // 2) < 300
    return np.random.default_rng(0).standard_normal(num_samples) * np.where(burst, 0.6, 0.1)


def read_sound(path: Path, track: int = 0) -> tuple[np.ndarray, int]:
    """float32 [N, C] of a sound track, as a player hears it, and its sample rate."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[track]
        resampler = av.AudioResampler(format="fltp")
        frames = [
            resampled.to_ndarray()
            for frame in container.decode(stream)
            for resampled in resampler.resample(frame)
        ]
        return np.concatenate(frames, axis=1).T, stream.rate


def header_samples(path: Path) -> int:
    """How many samples the first sound track has by its header."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.duration is not None
        return round(stream.duration * stream.time_base * stream.rate)


def read_comment(path: Path) -> Any:
    """The file's comment; Ogg keeps it at its stream."""
    with av.open(str(path)) as container:
        tags = container.metadata | container.streams[0].metadata
        return {name.lower(): value for name, value in tags.items()}.get("comment")

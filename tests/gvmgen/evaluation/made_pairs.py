"""Films with cuts at known times, and sounds whose events, notes and noise are known."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from gvmgen.encoders.media import ffmpeg_path
from shards.spec import SAMPLE_RATE

CUTS_S = (1.3, 2.1, 3.8, 5.2, 5.9, 7.7)


def clicks(times: np.ndarray, duration_s: float, pitch: float = 880.0) -> np.ndarray:
    """Short decaying tones at these seconds."""
    sound = np.zeros(round(duration_s * SAMPLE_RATE), np.float32)
    seconds = np.arange(SAMPLE_RATE // 5) / SAMPLE_RATE
    click = 0.5 * np.sin(2 * np.pi * pitch * seconds) * np.exp(-30 * seconds)
    for start in (times * SAMPLE_RATE).astype(int):
        stretch = sound[start : start + len(click)]
        stretch += click[: len(stretch)]
    return sound


def chords(*chords_hz: tuple[float, ...], each_s: float = 1.5) -> np.ndarray:
    seconds = np.arange(round(each_s * SAMPLE_RATE)) / SAMPLE_RATE
    parts = [sum(np.sin(2 * np.pi * pitch * seconds) for pitch in chord) for chord in chords_hz]
    return (0.2 * np.concatenate(parts)).astype(np.float32)


def noise(duration_s: float, level: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (level * rng.normal(size=round(duration_s * SAMPLE_RATE))).astype(np.float32)


def make_film(path: Path, cuts_s: tuple[float, ...] = CUTS_S, duration_s: float = 9.0) -> Path:
    """Plain colours; another one after each cut. 20 frames a second."""
    shots = []
    ends = (*cuts_s, duration_s)
    for number, (start, end) in enumerate(zip((0.0, *cuts_s), ends, strict=True)):
        grey = ("black", "white")[number % 2]
        shots += ["-f", "lavfi", "-i", f"color={grey}:s=64x48:r=20:d={end - start:.3f}"]
    joined = "".join(f"[{i}:v]" for i in range(len(ends))) + f"concat=n={len(ends)}"
    command = [ffmpeg_path(), "-v", "error", "-y", *shots, "-filter_complex", joined, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path

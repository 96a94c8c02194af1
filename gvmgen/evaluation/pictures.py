"""Spectrograms, pitch contours, waveforms and matrices as small pictures. N waveform samples."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.motion import GRID_RATE
from gvmgen.evaluation.sound import SILENCE_DB
from shards.spec import SAMPLE_RATE

NUM_MELS = 96
_RANGE_DB = 70.0
_PITCH_HZ = (65.0, 1000.0)  # C2 … about C6
_PITCH_WINDOW = 2048  # samples
# Dark violet over red to pale yellow, evenly lighter: the reader sees level, not hue.
_COLOURS = np.array([(13, 8, 35), (87, 24, 104), (176, 52, 92), (238, 118, 59), (252, 246, 190)], float)


def mel_picture(waveform: np.ndarray, duration_s: float) -> str:
    """A mel spectrogram over the video's length, low tones below, as a PNG's data URL."""
    padded = _of_length(waveform, duration_s)
    mel = needed("librosa").feature.melspectrogram(
        y=padded,
        sr=SAMPLE_RATE,
        n_fft=_PITCH_WINDOW,
        hop_length=SAMPLE_RATE // GRID_RATE // 2,
        n_mels=NUM_MELS,
    )
    level = 10 * np.log10(np.maximum(mel, 1e-10))
    return picture(np.clip((level - level.max()) / _RANGE_DB + 1, 0, 1)[::-1])


def picture(values: np.ndarray) -> str:
    """Values 0 … 1, [height, width], one pixel each, as a PNG's data URL."""
    place = np.clip(values, 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - low)[..., None]
    pixels = _COLOURS[low] * (1 - share) + _COLOURS[low + 1] * share
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pitch_contour(waveform: np.ndarray, duration_s: float) -> list[list[tuple[float, float]]]:
    """Stretches of (time, height), both 0 … 1 of the mel picture: YIN's pitch where there is sound.

    Of one voice; of many, YIN follows the strongest.
    """
    hop = SAMPLE_RATE // GRID_RATE
    padded = _of_length(waveform, duration_s)
    pitch = needed("librosa").yin(
        padded,
        fmin=_PITCH_HZ[0],
        fmax=_PITCH_HZ[1],
        sr=SAMPLE_RATE,
        frame_length=_PITCH_WINDOW,
        hop_length=hop,
    )
    heights = _mel(pitch) / _mel(np.array(SAMPLE_RATE / 2))
    stretches: list[list[tuple[float, float]]] = [[]]
    for i, height in enumerate(heights):
        stretch = padded[i * hop : (i + 1) * hop]
        if not len(stretch) or 20 * np.log10(np.sqrt(np.mean(stretch**2)) + 1e-9) < SILENCE_DB:
            stretches.append([])
        else:
            stretches[-1].append((i / len(heights), float(height)))
    return [stretch for stretch in stretches if len(stretch) > 1]


def _mel(frequency: np.ndarray) -> np.ndarray:
    return np.asarray(needed("librosa").hz_to_mel(frequency))


def peaks(waveform: np.ndarray, duration_s: float, count: int = 200) -> list[float]:
    """The loudest sample, 0 … 1, of each of so many stretches of the video's length."""
    stretches = np.array_split(np.abs(_of_length(waveform, duration_s)), count)
    return [round(min(1.0, float(stretch.max(initial=0))), 3) for stretch in stretches]


def _of_length(waveform: np.ndarray, duration_s: float) -> np.ndarray:
    """Cut, or filled with silence, to the video's length; no shorter than a window."""
    size = max(_PITCH_WINDOW, round(duration_s * SAMPLE_RATE))
    return np.pad(waveform[:size], (0, max(0, size - len(waveform))))

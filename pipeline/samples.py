"""A thumbnail and a waveform of one segment. N waveform samples."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gvmgen.encoders.media import MediaError, read_frames, read_waveform

WIDTH = 240  # pixels of a thumbnail
COLUMNS = 120  # of a waveform


@dataclass(frozen=True)
class Picture:
    """What the page shows of a segment."""

    thumbnail: str = ""  # a data URL; empty where the file cannot be read
    peaks: tuple[float, ...] = ()  # 0 … 1


def picture_of(row: dict[str, Any], folder: Path) -> Picture:
    """The frame in a segment's middle and its waveform; an empty picture where the file is gone or
    unreadable."""
    path = folder / row["source"]
    try:
        frame = next(iter(read_frames(path, row["start_s"] + row["duration_s"] // 2, 1.0)))
        waveform = read_waveform(path, row["start_s"], row["duration_s"], sample_rate=8000)
    except (MediaError, OSError):
        return Picture()
    return Picture(_data_url(frame), peaks(waveform))


def peaks(waveform: np.ndarray) -> tuple[float, ...]:
    """The loudest sample of each of 120 stretches. waveform: float [N]."""
    stretches = np.array_split(np.abs(waveform), COLUMNS)
    return tuple(round(min(1.0, float(s.max())), 3) if s.size else 0.0 for s in stretches)


def _data_url(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

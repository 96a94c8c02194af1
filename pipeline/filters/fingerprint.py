"""What a segment sounds and looks like, short enough to compare a million of them.

Sound: Chromaprint, the AcoustID project's, through ffmpeg's muxer. Picture: a difference hash of each frame.
Shapes: F frames, H height, W width, N waveform samples.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

SOUND_RATE = 8.08  # Hz; Chromaprint's frames of 4096 samples at 11025 Hz, two thirds overlapped


def fingerprint(waveform: np.ndarray, sample_rate: int, frames: Sequence[np.ndarray]) -> dict[str, str]:
    """{"sound_print": uint32, one about every 0.124 s, "picture_print": uint64, one a frame}, both in base64.

    waveform: float [N]; frames: uint8 [H, W, 3]. Silence and pieces below 3 s have an empty sound print.
    """
    return {
        "sound_print": encode(chromaprint(waveform, sample_rate)),
        "picture_print": encode(np.array([_difference_hash(frame) for frame in frames], "<u8")),
    }


def chromaprint(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """uint32 [about 8.08 · seconds]. Raises ValueError where no ffmpeg with Chromaprint is at hand."""
    samples = np.rint(np.clip(waveform, -1, 1) * 32767).astype("<i2")
    command = [
        _ffmpeg_with_chromaprint(),
        "-nostdin",
        "-v",
        "error",
        "-f",
        "s16le",
        "-ar",
        str(sample_rate),
        "-ac",
        "1",
    ]
    command += [
        "-protocol_whitelist",
        "pipe",
        "-i",
        "pipe:0",
        "-f",
        "chromaprint",
        "-fp_format",
        "raw",
        "pipe:1",
    ]
    result = subprocess.run(command, input=samples.tobytes(), capture_output=True, timeout=120, check=False)
    if result.returncode:
        raise ValueError(f"ffmpeg made no fingerprint: {result.stderr.decode(errors='replace')[-300:]}")
    return np.frombuffer(result.stdout[: len(result.stdout) // 4 * 4], "<u4")


def encode(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def decode(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def _difference_hash(frame: np.ndarray) -> int:
    """64 bits: is each of 8 x 8 places brighter than its right neighbour? Size and codec hardly matter."""
    small = Image.fromarray(frame).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


@lru_cache(maxsize=1)
def _ffmpeg_with_chromaprint() -> str:
    """The ffmpeg of PATH if it has the muxer, else the one of imageio-ffmpeg, which has."""
    import imageio_ffmpeg

    from gvmgen.encoders.media import ffmpeg_path

    for binary in (ffmpeg_path(), imageio_ffmpeg.get_ffmpeg_exe()):
        muxers = subprocess.run(
            [binary, "-v", "error", "-muxers"], capture_output=True, text=True, check=False
        )
        if " chromaprint" in muxers.stdout:
            return binary
    raise ValueError("no ffmpeg with Chromaprint found. Run: pip install imageio-ffmpeg")

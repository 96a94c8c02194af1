"""Films and music made small enough to lie inside a page, as data URLs. N waveform samples."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

import numpy as np

from gvmgen.encoders.process import PROTOCOLS, local_file, run_ffmpeg
from shards.spec import SAMPLE_RATE

# What every browser plays. Frames may stay as they are: their rate is part of how motion looks.
_PICTURE = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
_SOUND = ["-c:a", "aac", "-b:a", "96k"]


def film(
    video: Path, waveform: np.ndarray | None, duration_s: float, width: int = 320, quality: int = 30
) -> str:
    """The first seconds of a video, with this music, float32 [N] at 32 kHz, as its only sound, or silent.

    width: pixels. quality: x264's CRF, the lower the better. Raises MediaError where ffmpeg fails.
    """
    scale = f"scale='min({width},iw)':-2,pad=ceil(iw/2)*2:ceil(ih/2)*2"
    picture = ["-protocol_whitelist", PROTOCOLS, "-i", local_file(video)]
    if waveform is None:
        sound, codec = [], ["-an"]
    else:
        sound, codec = [*_raw(), "-i", "pipe:"], [*_SOUND, "-map", "1:a"]
    arguments = [*picture, *sound, "-map", "0:V:0", *codec, "-vf", scale, *_PICTURE, "-crf", str(quality)]
    return _data_url([*arguments, "-t", f"{duration_s:.3f}"], video, waveform, "video/mp4")


def music(waveform: np.ndarray, source: Path) -> str:
    """A waveform, float32 [N] at 32 kHz. source: the file that errors name."""
    return _data_url([*_raw(), "-i", "pipe:", *_SOUND], source, waveform, "audio/mp4")


def _raw() -> list[str]:
    return ["-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1"]


def _data_url(arguments: list[str], source: Path, waveform: np.ndarray | None, kind: str) -> str:
    stdin = b"" if waveform is None else np.ascontiguousarray(waveform, "<f4").tobytes()
    quiet = ["-hide_banner", "-v", "error", "-y"] + (["-nostdin"] if waveform is None else [])
    with tempfile.TemporaryDirectory() as folder:  # MP4 cannot be written into a pipe
        out = Path(folder) / "excerpt.mp4"
        run_ffmpeg(
            [*quiet, *arguments, "-movflags", "+faststart", "-fflags", "+bitexact", str(out)], source, stdin
        )
        content = out.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

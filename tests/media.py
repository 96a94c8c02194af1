"""Makers of small media files whose content is known: every frame shows its own number.

All of them are written by real encoders (PyAV's and ffmpeg's libraries), none is a recording.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from gvmgen.encoders.media import ffmpeg_path

NUM_BITS = 8
TICK = Fraction(1, 12800)  # s; of the numbered videos' timestamps


def numbered_picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 [H, W, 3]: the number in binary as upright bars, lowest bit on the left, white for one."""
    bits = np.array([number >> bit & 1 for bit in range(NUM_BITS)], np.uint8)
    row = bits[np.arange(width) * NUM_BITS // width] * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(frame: np.ndarray) -> int:
    """The number that a frame [H, W, 3] of `numbered_picture` shows, after any lossy coding or scaling."""
    width = frame.shape[1]
    middles = [round((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    levels = [frame[:, middle - 1 : middle + 1].mean() for middle in middles]
    return sum(1 << bit for bit, level in enumerate(levels) if level > 127)


def constant_times(duration_s: float, frame_rate: Fraction) -> list[Fraction]:
    """Timestamps in seconds of a constant frame rate."""
    return [index / frame_rate for index in range(round(duration_s * frame_rate))]


def variable_times(duration_s: float, seed: int = 0) -> list[Fraction]:
    """Timestamps in seconds with gaps from 10 ms to 2.5 s, the first at 0."""
    gaps = np.random.default_rng(seed).choice([0.01, 0.04, 0.1, 0.7, 2.5], 1000)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    return [Fraction(str(round(t, 3))) for t in times if t < duration_s][: 1 << NUM_BITS]


def make_numbered(
    path: Path,
    times: Sequence[Fraction],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    frame_rate: Fraction = Fraction(10),
    gop: int = 25,
    faststart: bool = False,
) -> Path:
    """A video without sound whose frame k, at times[k] seconds, shows the number k.

    frame_rate: Hz; what the header says, and how long the last frame lasts.
    """
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=frame_rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = TICK
        stream.codec_context.gop_size = gop
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / TICK), TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_clicks(path: Path, duration_s: float, sample_rate: int = 44_100, codec: str = "pcm_s16le") -> Path:
    """Mono sound with a short click at every whole second, the first at 0; louder each second."""
    sound = np.zeros(round(duration_s * sample_rate), "<i2")
    for second in range(int(np.ceil(duration_s))):
        sound[second * sample_rate : second * sample_rate + 40] = 6000 + 1000 * second
    raw = ["-f", "s16le", "-ar", str(sample_rate), "-ac", "1", "-i", "pipe:"]
    run_ffmpeg([*raw, "-c:a", codec, str(path)], stdin=sound.tobytes())
    return path


def join(picture: Path, sound: Path, path: Path, *, sound_delay_s: float = 0.0, codec: str = "copy") -> Path:
    """One file with the picture of one and the sound of the other, which may start later."""
    inputs = ["-i", str(picture), "-itsoffset", str(sound_delay_s), "-i", str(sound)]
    run_ffmpeg([*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", codec, str(path)])
    return path


def delay_picture(picture: Path, path: Path, delay_s: float) -> Path:
    """The picture starts later than the file: an edit list in MP4, plain timestamps elsewhere."""
    silence = ["-f", "lavfi", "-i", "anullsrc=r=44100:cl=mono:d=1"]
    inputs = [*silence, "-itsoffset", str(delay_s), "-i", str(picture)]
    run_ffmpeg([*inputs, "-map", "1:v", "-map", "0:a", "-c:v", "copy", "-c:a", "aac", str(path)])
    return path


def cut_by_edit_list(picture: Path, path: Path, start_s: float) -> Path:
    """An MP4 that starts between key frames: the packets before are there, an edit list hides them."""
    run_ffmpeg(["-ss", str(start_s), "-i", str(picture), "-c", "copy", str(path)])
    return path


def rotate(picture: Path, path: Path, degrees: int) -> Path:
    """The same packets with a display matrix, as a phone held upright writes them."""
    run_ffmpeg(["-display_rotation:v", str(degrees), "-i", str(picture), "-c", "copy", str(path)])
    return path


def interlace(picture: Path, path: Path) -> Path:
    """Coded as interlaced fields, top field first."""
    fields = ["-vf", "setfield=tff", "-flags", "+ilme+ildct", "-x264opts", "tff=1"]
    run_ffmpeg(["-i", str(picture), "-c:v", "libx264", *fields, str(path)])
    return path


def remux(source: Path, path: Path) -> Path:
    """The same packets in the container of the new extension."""
    run_ffmpeg(["-i", str(source), "-c", "copy", str(path)])
    return path


def cut_bytes(source: Path, path: Path, share: float) -> Path:
    """The first part of the file's bytes, as an interrupted download leaves it."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def make_sound_only(path: Path, duration_s: float = 3.0) -> Path:
    """A tone without any picture."""
    run_ffmpeg(["-f", "lavfi", "-i", f"sine=frequency=440:duration={duration_s}", str(path)])
    return path


def run_ffmpeg(arguments: list[str], stdin: bytes = b"") -> None:
    command = [ffmpeg_path(), "-hide_banner", "-v", "error", "-y", *arguments]
    subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=60)

"""Video files in, frames and waveforms out. All of it through ffmpeg; no torch.

One clock: every time is in seconds from the container's first timestamp, which is a player's zero.
Shapes: H height, W width, N waveform samples.
"""

from __future__ import annotations

import math
import os
import threading
import wave
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import ffmpeg
import numpy as np

from gvmgen.encoders.needed_packets import FORMAT, ORIGIN_S, UnsuitedError, feed_needed
from gvmgen.encoders.probe import MediaInfo, open_media, picture_stream, probe
from gvmgen.encoders.process import (
    DEADLINE_S,
    PROTOCOLS,
    FfmpegOutput,
    MediaError,
    ffmpeg_path,
    local_file,
)
from shards.spec import FRAME_RATE, SAMPLE_RATE, num_frames

__all__ = [
    "MediaError",
    "MediaInfo",
    "ffmpeg_path",
    "frame_times",
    "probe",
    "read_frames",
    "read_waveform",
    "write_waveform",
]

# Decoding starts this much before a segment: the picture shown at its start may be older than it,
# and a decoder needs some run-up after a seek.
_RUN_UP_S = 10
# Resampling starts on a whole second this much before: the same phase and history, seek or not.
_RESAMPLER_RUN_UP_S = 1
# A thread a core: ffmpeg's own choice is one more, and on two cores it decodes a fifth slower.
_THREADS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
# PPM carries its own size; rgb24, as ten bits would come as two bytes.
_PICTURES = {"map": "0:V:0", "f": "image2pipe", "c:v": "ppm", "pix_fmt": "rgb24"}


def read_frames(
    path: Path | str,
    start_s: float = 0.0,
    duration_s: float | None = None,
    deadline_s: float = DEADLINE_S,
    ends_at: float = math.inf,
) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] frames, one a second: the picture on show at start_s, start_s + 1, start_s + 2 …

    On show is the last frame with a timestamp at or before that time; before the first frame, the first.
    After the picture's end its last frame stays, as in a player. `duration_s`: to the file's end if None.
    One frame is in memory at a time. Raises MediaError when the file ends before its header says so, and
    MediaTimeoutError when ffmpeg is silent for `deadline_s` or not done at `ends_at`, in time.monotonic().
    """
    path = Path(path)
    info = probe(path)
    wanted = num_frames(_duration(path, info, start_s, duration_s))
    given = 0
    if info.is_simple_h264:
        for frame in _frames_of_needed(path, start_s, wanted, deadline_s, ends_at):
            yield frame
            given += 1
    if given < wanted:
        yield from _frames_of_all(path, info, start_s + given, wanted - given, deadline_s, ends_at)


def _frames_of_needed(
    path: Path, start_s: float, wanted: int, deadline_s: float, ends_at: float
) -> Iterator[np.ndarray]:
    """Frames of a film of which only what they need is decoded; fewer where it cannot be told."""
    is_unsure = threading.Event()
    seek_s = max(0.0, start_s - _RUN_UP_S)

    def feed(out: IO[bytes]) -> None:
        try:
            feed_needed(path, seek_s, start_s, wanted, out)
        except BrokenPipeError:
            raise  # ffmpeg has ended
        except (UnsuitedError, av.error.FFmpegError, OSError):
            is_unsure.set()  # before ffmpeg learns that no more will come

    with FfmpegOutput(_needed_arguments(wanted), path, deadline_s, ends_at, feed) as output:
        for frame in _pictures(output):
            if is_unsure.is_set():
                return
            yield frame


def _frames_of_all(
    path: Path, info: MediaInfo, start_s: float, wanted: int, deadline_s: float, ends_at: float
) -> Iterator[np.ndarray]:
    """Frames of any film."""
    given = 0
    with FfmpegOutput(_frame_arguments(path, start_s, wanted), path, deadline_s, ends_at) as output:
        for frame in _pictures(output):
            yield frame
            given += 1
        complaints = output.complaints() if given < wanted else ""
    end_s = start_s + given
    if end_s < min(info.video_end_s, start_s + wanted) - 1:
        raise _cut_short(path, "picture", end_s, info.video_end_s, complaints)
    if given < wanted:
        last = _last_frame(path, max(0.0, min(end_s, info.video_end_s) - 1), deadline_s)
        for _ in range(given, wanted):
            yield last


def frame_times(path: Path | str, start_s: float = 0.0, duration_s: float | None = None) -> list[float]:
    """Timestamps, in seconds, of the frames that `read_frames` gives for the same arguments."""
    path = Path(path)
    info = probe(path)
    wanted = num_frames(_duration(path, info, start_s, duration_s))
    times = _timestamps(path, start_s, start_s + wanted)
    chosen = []
    for index in range(wanted):
        on_show = [time for time in times if time <= start_s + index / FRAME_RATE]
        chosen.append(float(on_show[-1] if on_show else times[0]))
    return chosen


def _duration(path: Path, info: MediaInfo, start_s: float, duration_s: float | None) -> float:
    """Seconds to read, to the file's end if None. Raises MediaError for a start outside the file."""
    if not 0 <= start_s < info.duration_s:
        raise MediaError(f"{path}: has no {start_s:g} s to start from, it lasts {info.duration_s:.2f} s")
    return info.duration_s - start_s if duration_s is None else duration_s


def _timestamps(path: Path, start_s: float, end_s: float) -> list[Fraction]:
    """Seconds of all frames from some seconds before start_s to end_s, in order; nothing is decoded."""
    times = []
    with open_media(path) as container:
        zero = Fraction(container.start_time or 0, av.time_base)
        if start_s > _RUN_UP_S:
            container.seek(int((start_s - _RUN_UP_S + zero) * av.time_base))
        for packet in container.demux(picture_stream(container)):
            if packet.dts is not None and packet.dts * packet.time_base - zero > end_s:
                break  # a frame is never shown before its packet is due
            if packet.pts is not None and not packet.is_discard:
                times.append(packet.pts * packet.time_base - zero)
    return sorted(times)


def read_waveform(
    path: Path | str,
    start_s: float = 0.0,
    duration_s: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    deadline_s: float = DEADLINE_S,
    ends_at: float = math.inf,
) -> np.ndarray:
    """float32 [N], mono, N = round(duration_s · sample_rate); silent where the file has no sound.

    Sample 0 and frame 0 of `read_frames` are the same moment. `duration_s`: to the file's end if None.
    Raises MediaError when there is no sound stream, or it ends before its header says so; MediaTimeoutError
    as `read_frames`.
    """
    path = Path(path)
    info = probe(path, needs_picture=False)
    if not info.has_audio:
        raise MediaError(f"{path}: has no sound; its music is needed here")
    wanted = round(_duration(path, info, start_s, duration_s) * sample_rate)
    waveform = np.zeros(wanted, np.float32)
    with FfmpegOutput(
        _waveform_arguments(path, start_s, sample_rate, info.channels), path, deadline_s, ends_at
    ) as output:
        size = output.read_into(waveform.data.cast("B"))
        complaints = output.complaints() if size < waveform.nbytes else ""
    end_s = start_s + size / waveform.itemsize / sample_rate
    if end_s < min(info.audio_end_s, start_s + wanted / sample_rate) - 1:
        raise _cut_short(path, "sound", end_s, info.audio_end_s, complaints)
    return waveform


def write_waveform(path: Path | str, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write float [N] in -1 … 1 as a mono 16-bit WAV file. The name appears when the file is whole."""
    path = Path(path)
    samples = np.rint(np.clip(waveform, -1.0, 1.0) * 32767).astype("<i2")
    aside = _aside(path)
    try:
        with aside.open("wb") as file, wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(sample_rate)
            sound.writeframes(samples.tobytes())
        _commit(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _seek(start_s: float) -> tuple[float, dict[str, Any]]:
    """Where the wanted start lies after the seek, in seconds, and the input options that seek there.

    `noaccurate_seek` keeps the frames before the start: the last of them is the one on show.
    """
    to_s = max(0.0, start_s - _RUN_UP_S)
    options: dict[str, Any] = {"protocol_whitelist": PROTOCOLS}
    if to_s > 0:
        options |= {"noaccurate_seek": None, "ss": f"{to_s:.6f}"}
    return start_s - to_s, options


def _frame_arguments(path: Path, start_s: float, wanted: int) -> list[str]:
    """ffmpeg's arguments for `wanted` frames, one a second."""
    offset_s, options = _seek(start_s)
    return _frames_from(
        ffmpeg.input(local_file(path), threads=_THREADS, **options), f"{offset_s:.6f}", wanted
    )


def _needed_arguments(wanted: int) -> list[str]:
    """The same, of what `feed_needed` writes to ffmpeg's standard input."""
    fed = ffmpeg.input("pipe:", f=FORMAT, threads=_THREADS, protocol_whitelist=PROTOCOLS, copyts=None)
    return _frames_from(fed, str(ORIGIN_S), wanted)


def _frames_from(source: Any, offset_s: str, wanted: int) -> list[str]:
    # up: a frame counts from the next whole second on
    frames = f"setpts=PTS-{offset_s}/TB,fps={FRAME_RATE}:round=up:start_time=0"
    return _arguments(source, "pipe:", {**_PICTURES, "vf": frames, "frames:v": wanted})


def _last_frame(path: Path, before_s: float, deadline_s: float) -> np.ndarray:
    """The picture's last frame; `before_s` lies before it."""
    options = {"protocol_whitelist": PROTOCOLS, "noaccurate_seek": None, "ss": f"{before_s:.6f}"}
    arguments = _arguments(ffmpeg.input(local_file(path), **options), "pipe:", _PICTURES)
    with FfmpegOutput(arguments, path, deadline_s) as output:
        last = deque(_pictures(output), maxlen=1)
        complaints = output.complaints()
    if not last:
        raise MediaError(f"{path}: its picture's end cannot be decoded: {complaints}")
    return last[0]


def _waveform_arguments(path: Path, start_s: float, sample_rate: int, channels: int) -> list[str]:
    """ffmpeg's arguments for mono float32 samples from start_s on."""
    offset_s, options = _seek(start_s)
    mean = "+".join(f"{1 / channels}*c{channel}" for channel in range(channels))
    sound = (
        f"asetpts=PTS-{offset_s - _RESAMPLER_RUN_UP_S:.6f}/TB,atrim=start=0,"
        f"pan=mono|c0={mean},"  # the mean of all channels, as audiocraft has it
        f"aresample={sample_rate}:async=1:first_pts=0,"  # silence before a late start, and in gaps
        f"aformat=sample_fmts=flt,atrim=start_sample={_RESAMPLER_RUN_UP_S * sample_rate}"
    )
    return _arguments(
        ffmpeg.input(local_file(path), **options), "pipe:", {"map": "0:a:0", "af": sound, "f": "f32le"}
    )


def _arguments(inputs: Any, out: str, options: dict[str, Any]) -> list[str]:
    streams = inputs if isinstance(inputs, list) else [inputs]
    quiet = ["-nostdin", "-hide_banner", "-v", "error"]
    return [*quiet, *ffmpeg.output(*streams, out, **options).get_args()]


def _pictures(output: FfmpegOutput) -> Iterator[np.ndarray]:
    """The PPM pictures of a stream, uint8 [H, W, 3]."""
    while output.read_line():  # "P6"
        width, height = (int(number) for number in output.read_line().split())
        output.read_line()  # the largest value, 255
        frame = np.empty((height, width, 3), np.uint8)
        if output.read_into(frame.data.cast("B")) == frame.nbytes:
            yield frame


def _cut_short(path: Path, what: str, found_s: float, wanted_s: float, complaints: str) -> MediaError:
    return MediaError(
        f"{path}: its {what} ends after {found_s:.0f} s, its header says {wanted_s:.1f} s; "
        f"is the file cut short? ({complaints or 'ffmpeg did not complain'})"
    )


def _aside(path: Path) -> Path:
    """A name in the same folder for a file that is not whole yet."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _commit(aside: Path, path: Path) -> None:
    """Make the file appear at its name, whole and on disk."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)

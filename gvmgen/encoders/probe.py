"""What a media file holds: streams, size, rotation, times. Through PyAV, as imageio brings no ffprobe."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.sidedata.sidedata import Type

from gvmgen.encoders.process import PROTOCOLS, MediaError, local_file

_PICTURE_A_PACKET = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers, by ffmpeg's names


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a file holds. Times in seconds on the file's own clock, whose zero is its first timestamp."""

    duration_s: float  # until the last stream ends
    has_video: bool
    has_audio: bool
    width: int = 0  # pixels as shown, after rotation
    height: int = 0
    frame_rate: float = 0.0  # Hz, average
    rotation: int = 0  # degrees
    is_simple_h264: bool = False  # H.264, a picture a packet, neither rotated nor mirrored
    video_start_s: float = 0.0
    video_end_s: float = 0.0
    channels: int = 0  # of the sound
    audio_start_s: float = 0.0
    audio_end_s: float = 0.0


def probe(path: Path | str, needs_picture: bool = True) -> MediaInfo:
    """What the file holds, from its header; packets are read only where the header has no duration.

    Raises MediaError when there is no such file, or it is empty, no media, cut before its index, or, with
    `needs_picture`, without a picture stream.
    """
    path = Path(path)
    with open_media(path) as container:
        video, audio = picture_stream(container), next(iter(container.streams.audio), None)
        if video is None and needs_picture:
            raise MediaError(f"{path}: has no picture stream; give a video")
        if video is None and audio is None:
            raise MediaError(f"{path}: has neither picture nor sound")
        spans = _stream_spans(container, [s for s in (video, audio) if s is not None], path)
        info: dict[str, Any] = {"duration_s": max(end for _, end in spans.values())}
        if audio is not None:
            info["channels"] = audio.channels
            info["audio_start_s"], info["audio_end_s"] = spans[audio.index]
        if video is not None:
            info["video_start_s"], info["video_end_s"] = spans[video.index]
            info |= _picture(container, video, path)
        return MediaInfo(has_video=video is not None, has_audio=audio is not None, **info)


def open_media(path: Path) -> Any:
    """A PyAV container, or MediaError in our words."""
    if not path.is_file():
        raise MediaError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: is empty (0 bytes)")
    try:
        return av.open(local_file(path), options={"protocol_whitelist": PROTOCOLS})
    except PermissionError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path}: is no media file that ffmpeg can read, or its index is cut off ({error.strerror})"
        ) from error


def picture_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture; None if there is none."""
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture that players show as the file's face."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _picture(container: Any, video: Any, path: Path) -> dict[str, Any]:
    """Size, rate and rotation of the picture stream; the rotation stands in the first decoded frame."""
    try:
        frame = next(container.decode(video))
    except (av.error.FFmpegError, StopIteration) as error:
        raise MediaError(f"{path}: its picture stream cannot be decoded; is the file damaged?") from error
    rotation = round(frame.rotation)
    size = (frame.width, frame.height) if rotation % 180 == 0 else (frame.height, frame.width)
    rate = float(video.average_rate or video.guessed_rate or 0)
    return {
        "width": size[0],
        "height": size[1],
        "frame_rate": rate,
        "rotation": rotation,
        "is_simple_h264": _has_h264_packets(container, video)
        and frame.side_data.get(Type.DISPLAYMATRIX) is None,
    }


def _has_h264_packets(container: Any, video: Any) -> bool:
    """Whether a packet is one H.264 picture with its time, as units that begin with their length."""
    if video.codec_context.name != "h264" or container.format.name not in _PICTURE_A_PACKET:
        return False
    return bytes(video.codec_context.extradata or b"")[:1] == b"\x01"


def _stream_spans(container: Any, streams: list[Any], path: Path) -> dict[int, tuple[float, float]]:
    """Start and end in seconds of each stream, by its index."""
    zero = Fraction(container.start_time or 0, av.time_base)
    spans = {}
    for stream in streams:
        start = (stream.start_time or 0) * stream.time_base
        if stream.duration is not None:
            end = start + stream.duration * stream.time_base
        elif "DURATION" in stream.metadata:  # Matroska: a tag with the last timestamp, h:mm:ss
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            end = Fraction(seconds) + 60 * int(minutes) + 3600 * int(hours)
        elif container.duration is not None:
            end = zero + Fraction(container.duration, av.time_base)
        else:
            try:
                return _spans_by_packets(container, streams, zero)
            except (av.error.FFmpegError, OSError) as error:  # a seek without an index is "not permitted"
                raise MediaError(f"{path}: cannot be read to its end; is the file damaged?") from error
        spans[stream.index] = (float(start - zero), float(end - zero))
    return spans


def _spans_by_packets(container: Any, streams: list[Any], zero: Fraction) -> dict[int, tuple[float, float]]:
    """As `_stream_spans`, for files without any duration, such as a browser's live recordings."""
    spans = {stream.index: (float("inf"), 0.0) for stream in streams}
    for packet in container.demux(streams):
        if packet.pts is not None:
            start, end = spans[packet.stream_index]
            at = packet.pts * packet.time_base - zero
            until = at + (packet.duration or 0) * packet.time_base
            spans[packet.stream_index] = (min(start, float(at)), max(end, float(until)))
    container.seek(0)
    return spans

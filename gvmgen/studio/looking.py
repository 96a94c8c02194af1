"""What the page shows of a video: small pictures, its cuts, and a copy that a browser can play. No torch."""

from __future__ import annotations

from pathlib import Path

from gvmgen.encoders.probe import open_media, picture_stream, probe
from gvmgen.encoders.process import PROTOCOLS, local_file
from gvmgen.evaluation.motion import measure_motion
from gvmgen.finish.ffmpeg import encode

NUM_FRAMES = 12
_FRAME_HEIGHT, _PLAY_HEIGHT = 90, 480  # pixels
# Codecs and containers that browsers play on every system; anything else gets a copy.
_PLAYABLE = {"h264": (".mp4", ".m4v", ".mov"), "vp8": (".webm",), "vp9": (".webm", ".mp4")}


def small_pictures(video: Path, duration_s: float, folder: Path) -> list[str]:
    """Write pictures from the middles of equal parts of the video; returns the names of the files.

    Raises MediaError where the picture cannot be decoded.
    """
    folder.mkdir(exist_ok=True)
    names = []
    for number in range(NUM_FRAMES):
        at_s = duration_s * (number + 0.5) / NUM_FRAMES
        path = folder / f"{number:02d}.jpg"
        picture = ["-map", "[out]", "-frames:v", "1", "-q:v", "4", "-f", "mjpeg"]
        encode(_input(video, at_s), f"[0:V:0]{_scaled(_FRAME_HEIGHT)},format=yuvj420p", picture, path)
        if path.stat().st_size:  # the sound may go on after the picture's end
            names.append(path.name)
        else:
            path.unlink()
    return names


def playable(video: Path, folder: Path) -> str:
    """The name of a file in the video's folder that browsers play: the video, or a small copy made now."""
    with open_media(video) as container:
        picture = picture_stream(container).codec_context
        codec, pixels = picture.name, picture.pix_fmt
    if video.suffix.lower() in _PLAYABLE.get(codec, ()) and pixels in ("yuv420p", "yuvj420p"):
        return video.name
    copy = folder / "play.mp4"
    coder = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "26", "-movflags", "+faststart", "-f", "mp4"]
    sound = ["-map", "0:a:0?", "-c:a", "aac", "-b:a", "128k"]
    encode(
        _input(video),
        f"[0:V:0]{_scaled(_PLAY_HEIGHT)},format=yuv420p",
        ["-map", "[out]", *sound, *coder],
        copy,
    )
    return copy.name


def cuts(video: Path) -> list[float]:
    """Seconds at which a new shot starts, as takes are ranked by them."""
    return [round(float(cut), 2) for cut in measure_motion(video).cuts]


def about(video: Path) -> dict[str, float | int | bool]:
    """What a probe tells, by the names of `shelf.Video`. Raises MediaError as `gvm-gen` does."""
    info = probe(video)
    return {
        "duration_s": info.duration_s,
        "width": info.width,
        "height": info.height,
        "has_audio": info.has_audio,
    }


def _input(video: Path, start_s: float = 0.0) -> list[str]:
    return ["-protocol_whitelist", PROTOCOLS, "-ss", f"{start_s:.3f}", "-i", local_file(video)]


def _scaled(height: int) -> str:
    return f"scale=-2:'min({height},trunc(ih/2)*2)'"

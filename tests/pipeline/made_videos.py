"""Small videos of known content, made with the ffmpeg that the program uses."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gvmgen.encoders.media import ffmpeg_path


def make_video(
    path: Path,
    duration_s: float = 6.0,
    pitch: int = 440,
    *,
    sound: bool = True,
    picture: bool = True,
    sound_s: float | None = None,
) -> Path:
    """A moving test picture with a tone; another pitch, another content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, codecs = [], []
    if picture:
        inputs += ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate=10:duration={duration_s}"]
        codecs += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    if sound:
        inputs += ["-f", "lavfi", "-i", f"sine=frequency={pitch}:duration={sound_s or duration_s}"]
        codecs += ["-c:a", "aac"]
    command = [
        ffmpeg_path(),
        "-nostdin",
        "-v",
        "error",
        "-y",
        *inputs,
        *codecs,
        "-fflags",
        "+bitexact",
        str(path),
    ]
    subprocess.run(command, check=True, timeout=60)
    return path


def make_many(folder: Path, count: int, duration_s: float = 6.0) -> Path:
    """Videos that differ in their bytes alone: one film, each with another number in a box nobody reads."""
    film = make_video(folder / "film.mp4", duration_s).read_bytes()
    (folder / "film.mp4").unlink()
    for number in range(count):
        payload = number.to_bytes(8, "big")
        box = (8 + len(payload)).to_bytes(4, "big") + b"free" + payload
        (folder / f"{number:05d}.mp4").write_bytes(film + box)
    return folder

"""Videos that a person would keep or drop at a glance: music over moving scenes, and what is wrong with the
others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gvmgen.encoders.media import ffmpeg_path, write_waveform

RATE = 32_000
SECONDS = 8
CAPTIONS = ("I never knew the sea was so far away", "and all the ships have gone to sleep tonight")


def song(seed: int, seconds: float = SECONDS) -> np.ndarray:
    """float32 [N]: plucked notes with harmonics in two octaves; another seed, another melody."""
    random = np.random.default_rng(seed)
    wave = np.zeros(round(seconds * RATE))
    times = np.arange(RATE // 2) / RATE
    for at in range(0, len(wave) - len(times), RATE // 4):
        for octave in (0.5, 1):
            pitch = 220 * octave * 2 ** (random.integers(0, 24) / 12)
            note = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in (1, 2, 3, 4))
            wave[at : at + len(times)] += 0.1 * note * np.exp(-6 * times)
    return wave.astype(np.float32)


def scene(seed: int, size: tuple[int, int] = (640, 360)) -> np.ndarray:
    """uint8 [H, W, 3]: a smooth random picture."""
    coarse = np.random.default_rng(seed).integers(30, 220, (6, 10, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def film(seed: int, seconds: int = SECONDS) -> list[np.ndarray]:
    """A new scene every second."""
    return [scene(1000 * seed + second) for second in range(seconds)]


def captioned(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=26)
    for line, words in enumerate(CAPTIONS):
        draw.text(
            (40, image.height - 90 + 40 * line), words, "white", font, stroke_width=2, stroke_fill="black"
        )
    return np.asarray(image)


def make_film(path: Path, frames: list[np.ndarray], waveform: np.ndarray) -> Path:
    """Write frames, one a second, with the music under them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = path.with_suffix(".made.wav")
    write_waveform(sound, waveform, RATE)
    height, width = frames[0].shape[:2]
    command = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", "1", "-i", "pipe:0", "-i", str(sound), "-r", "5"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac", str(path)]
    subprocess.run(command, input=b"".join(f.tobytes() for f in frames), check=True, timeout=60)
    sound.unlink()
    return path


def encode_again(path: Path, out: Path) -> Path:
    """The same film at another size and bit rate."""
    command = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", "-i", str(path), "-vf", "scale=320:180"]
    command += [
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-crf",
        "32",
        "-c:a",
        "aac",
        "-b:a",
        "64k",
        str(out),
    ]
    subprocess.run(command, check=True, timeout=60)
    return out

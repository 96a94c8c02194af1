"""Where someone speaks, by silero-vad, and music that makes room there. N waveform samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gvmgen.encoders.process import PROTOCOLS, FfmpegOutput, local_file
from gvmgen.finish.sound import Sound

SAMPLE_RATE = 16_000  # Hz, what the detector was trained on
WINDOW = 512  # samples that it reads at once
DUCK_DB = -12.0  # of the music under speech
BEFORE_S, AFTER_S = 0.3, 0.8  # the music is down this much before the first word, and back after the last
PAUSE_S = 1.5  # a shorter pause between words is no reason to come back

Span = tuple[float, float]  # from, to in seconds of the video


class MissingExtraError(ValueError):
    """The speech detector is not installed. Names the command that installs it."""


def check_detector() -> None:
    """Raise MissingExtraError where the speech detector is not installed."""
    for module in ("silero_vad", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f"ducking under speech needs {module}. Run: pip install 'gvmgen[filters]', or keep the sound"
            )


def speech_spans(video: Path) -> list[Span]:
    """When someone speaks in a file's first sound track. Raises MissingExtraError without the detector."""
    check_detector()
    import torch
    from silero_vad import VADIterator, load_silero_vad

    detector = VADIterator(
        load_silero_vad(onnx=True), sampling_rate=SAMPLE_RATE, min_silence_duration_ms=round(PAUSE_S * 1000)
    )
    spans, start, heard = [], None, 0
    for window in _windows(video):
        heard += WINDOW
        event = detector(torch.from_numpy(window)) or {}
        start = event.get("start", start)
        if "end" in event and start is not None:
            spans.append((start / SAMPLE_RATE, event["end"] / SAMPLE_RATE))
            start = None
    if start is not None:
        spans.append((start / SAMPLE_RATE, heard / SAMPLE_RATE))
    return spans


def _windows(video: Path) -> Iterator[np.ndarray]:
    """The first sound track, float32 [WINDOW] at a time, from the player's zero on."""
    sound = f"aresample={SAMPLE_RATE}:async=1:first_pts=0,aformat=sample_fmts=flt:channel_layouts=mono"
    source = ["-nostdin", "-v", "error", "-protocol_whitelist", PROTOCOLS, "-i", local_file(video)]
    with FfmpegOutput([*source, "-map", "0:a:0", "-af", sound, "-f", "f32le", "pipe:"], video) as output:
        window = np.empty(WINDOW, np.float32)
        while output.read_into(window.data.cast("B")) == window.nbytes:
            yield window
        output.complaints()


def ducked(music: Sound, spans: Sequence[Span], start_s: float) -> Sound:
    """The music, quieter where someone speaks; it begins at `start_s` of the video."""
    times, levels = _curve(spans)
    quieter = Sound(music.sample_rate)
    for first, block in music.blocks():
        at_s = start_s + (first + np.arange(len(block))) / music.sample_rate
        quieter.append(block * 10 ** (np.interp(at_s, times, levels) / 20))
    return quieter


def _curve(spans: Sequence[Span]) -> tuple[list[float], list[float]]:
    """Corners of the music's level over time: seconds, dB. Straight in dB, as an engineer's hand moves."""
    times, levels = [0.0], [0.0]
    for start, end in spans:
        times += [max(times[-1], start - BEFORE_S), max(times[-1], start), end, end + AFTER_S]
        levels += [0.0, DUCK_DB, DUCK_DB, 0.0]
    return times, levels

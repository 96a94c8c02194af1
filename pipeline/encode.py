"""One segment -> one sample: frames through CLIP, waveform through EnCodec.

Dimensions: F video frames, P patches, D feature width, K codebooks, T code frames, N waveform samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.video import VideoEncoder
from torch import Tensor

from gvmgen.encoders import encoder_fingerprint
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.encoders.presets import encoder_config
from pipeline.failures import SegmentError, stage
from pipeline.manifest import Segment
from pipeline.sources import sha256_of
from shards.spec import FRAME_RATE, SAMPLE_RATE, Sample, num_frames

BATCH_FRAMES = 8  # beyond it CLIP gains nothing on a CPU


@dataclass(frozen=True)
class Encoders:
    """The frozen pair that made a data set."""

    video: VideoEncoder
    audio: AudioCodec

    @classmethod
    def load(cls, preset: str, device: str) -> Self:
        config = encoder_config(preset)
        return cls(VideoEncoder.load(config, device=device), AudioCodec.load(config, device=device))

    @property
    def fingerprint(self) -> dict[str, Any]:
        return encoder_fingerprint(self.video, self.audio)


@dataclass(frozen=True)
class Media:
    """A segment as it comes out of ffmpeg."""

    frames: Tensor  # [F, 3, 336, 336], as CLIP wants them
    waveform: np.ndarray  # float32 [N]


def read_media(segment: Segment, path: Path, encoders: Encoders) -> Media:
    """Picture and sound of a segment, from the same start. Raises SegmentError."""
    with stage("source"):
        check_source(segment, path)
    with stage("frames"):
        frames = [
            encoders.video.preprocess(frame)
            for frame in read_frames(path, segment.start_s, segment.duration_s)
        ]
    with stage("waveform"):
        waveform = read_waveform(path, segment.start_s, segment.duration_s, SAMPLE_RATE)
    return Media(torch.stack(frames), waveform)


def encode_media(
    segment: Segment, media: Media, encoders: Encoders, on_frames: Callable[[int], None]
) -> Sample:
    """The segment's sample; `on_frames` hears of every batch. Raises SegmentError."""
    features = []
    with stage("clip"):
        for batch in media.frames.split(BATCH_FRAMES):
            features.append(encoders.video.encode(batch).cpu())  # [F, P, D]
            on_frames(len(batch))
    with stage("encodec"):
        codes = encoders.audio.encode(torch.from_numpy(media.waveform)[None])[0]  # [N] -> [K, T]
    meta = {**segment.identity, "source": segment.source, "frame_times_s": _frame_times(segment)}
    return Sample(segment.key, torch.cat(features).numpy(), codes.cpu().numpy().astype(np.int16), meta)


def check_source(segment: Segment, path: Path) -> None:
    """Raise SegmentError unless the file is the one that was crawled; hashed only where its time changed."""
    if not path.exists():
        raise SegmentError(
            "source", "transient", f"{path}: no such file; is its disk there? Else crawl again"
        )
    stat = path.stat()
    if stat.st_size == segment.source_size and stat.st_mtime_ns == segment.source_mtime_ns:
        return
    if stat.st_size != segment.source_size or sha256_of(path) != segment.source_sha256:
        raise SegmentError(
            "source", "permanent", f"{path}: the file changed since the crawl. Run: gvm-prep crawl-manifest"
        )


def _frame_times(segment: Segment) -> list[float]:
    """Seconds from the source's start."""
    return [segment.start_s + i / FRAME_RATE for i in range(num_frames(segment.duration_s))]

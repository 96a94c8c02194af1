"""One segment -> one sample: frames through CLIP, waveform through EnCodec.

Dimensions: F video frames, P patches, D feature width, K codebooks, T code frames, N waveform samples.
Frames are numbered by the seconds from their source's start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gvmgen.encoders.audio import AudioCodec
from gvmgen.encoders.fingerprint import encoder_fingerprint
from gvmgen.encoders.media import read_frames, read_waveform
from gvmgen.encoders.presets import encoder_config
from gvmgen.encoders.video import VideoEncoder
from pipeline.cache import FeatureCache
from pipeline.failures import SegmentError, stage
from pipeline.manifest import Segment, frames_of
from pipeline.sources import sha256_of
from shards.spec import FRAME_RATE, SAMPLE_RATE, Sample

CPU_BATCH = 8  # frames; beyond it CLIP gains nothing there
GPU_BATCH = 30  # a segment's


@dataclass(frozen=True)
class Encoders:
    """The frozen pair that makes a data set."""

    video: VideoEncoder
    audio: AudioCodec
    is_on_gpu: bool = False

    @classmethod
    def load(cls, preset: str, device: str | None = None) -> Self:
        """The preset's encoders on `device`; None, on a GPU where there is one."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = encoder_config(preset)
        video, audio = VideoEncoder.load(config, device=device), AudioCodec.load(config, device=device)
        return cls(video, audio, is_on_gpu=device.startswith("cuda"))

    @property
    def batch_size(self) -> int:
        """Frames that go through CLIP together."""
        return GPU_BATCH if self.is_on_gpu else CPU_BATCH

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return encoder_fingerprint(self.video, self.audio)


@dataclass(frozen=True)
class Media:
    """A segment before the encoders: what ffmpeg gives, and what the cache has already."""

    frames: Mapping[
        int, Tensor
    ]  # [3, 336, 336] by frame, as CLIP wants them; at least those that are not cached
    cached: Mapping[int, np.ndarray]  # float16 [P, D] by frame
    waveform: np.ndarray  # float32 [N]


@dataclass
class Progress:
    """How many frames went through CLIP, and how many came from the cache."""

    on_frames: Callable[[int], object] = lambda num_frames: None
    num_encoded: int = 0
    num_cached: int = 0

    def encoded(self, num_frames: int) -> None:
        self.num_encoded += num_frames
        self.on_frames(num_frames)

    def cached(self, num_frames: int) -> None:
        self.num_cached += num_frames
        self.on_frames(num_frames)


def read_media(segment: Segment, path: Path, encoders: Encoders, cache: FeatureCache | None) -> Media:
    """Picture and sound of a segment, from the same start. Raises SegmentError."""
    with stage("source"):
        check_source(segment, path)
    with stage("cache"):
        cached = {} if cache is None else cache.source(segment).read(frames_of(segment))
    with stage("frames"):
        frames = read_pictures(path, [f for f in frames_of(segment) if f not in cached], encoders)
    with stage("waveform"):
        waveform = read_waveform(path, segment.start_s, segment.duration_s, SAMPLE_RATE)
    return Media(frames, cached, waveform)


def read_pictures(path: Path, wanted: list[int], encoders: Encoders) -> dict[int, Tensor]:
    """CLIP's input by frame, from the first wanted to the last."""
    if not wanted:
        return {}
    first, last = wanted[0], wanted[-1]
    frames = read_frames(path, first / FRAME_RATE, (last - first + 1) / FRAME_RATE)
    return {frame: encoders.video.preprocess(picture) for frame, picture in enumerate(frames, start=first)}


def encode_media(
    segment: Segment, media: Media, encoders: Encoders, cache: FeatureCache | None, progress: Progress
) -> Sample:
    """The segment's sample. Raises SegmentError."""
    with stage("clip"):
        features = _encode_frames(segment, media, encoders, cache, progress)  # [F, P, D]
    with stage("encodec"):
        codes = encoders.audio.encode(torch.from_numpy(media.waveform)[None])[0]  # [N] -> [K, T]
    meta = {
        **segment.identity,
        "frame_times_s": [frame / FRAME_RATE for frame in frames_of(segment)],
        "source": segment.source.encode(errors="backslashreplace").decode(),
    }
    return Sample(segment.key, features, codes.cpu().numpy().astype(np.int16), meta)


def _encode_frames(
    segment: Segment, media: Media, encoders: Encoders, cache: FeatureCache | None, progress: Progress
) -> np.ndarray:
    """float16 [F, P, D]; a frame that the cache got since it was looked into is not encoded either."""
    entry = None if cache is None else cache.source(segment)
    features = dict(media.cached)
    if entry is not None:
        features |= entry.read(media.frames.keys() - features.keys())
    progress.cached(len(features))
    todo = sorted(media.frames.keys() - features.keys())
    for i in range(0, len(todo), encoders.batch_size):
        frames = todo[i : i + encoders.batch_size]
        batch = clip_features(torch.stack([media.frames[frame] for frame in frames]), encoders)
        for frame, frame_features in zip(frames, batch, strict=True):
            features[frame] = frame_features
            if entry is not None:
                entry.write(frame, frame_features)
        progress.encoded(len(frames))
    return np.stack([features[frame] for frame in frames_of(segment)])


def clip_features(frames: Tensor, encoders: Encoders) -> np.ndarray:
    """uint8 [F, 3, 336, 336] -> float16 [F, P, D].

    A GPU chooses its kernels by the batch's size, and they differ in the last bit. So every batch there has
    one size, and a frame's features do not depend on where a run was killed. On a CPU they never did.
    """
    num_frames = len(frames)
    if encoders.is_on_gpu:
        frames = torch.cat([frames, frames[-1:].expand(encoders.batch_size - num_frames, -1, -1, -1)])
    return _encode_in_memory(frames, encoders.video)[:num_frames]


def _encode_in_memory(frames: Tensor, video: VideoEncoder) -> np.ndarray:
    """As `clip_features`; in halves where memory runs out."""
    try:
        return video.encode(frames).cpu().numpy()
    except torch.OutOfMemoryError:
        if len(frames) == 1:
            raise
        return np.concatenate([_encode_in_memory(half, video) for half in frames.chunk(2)])


def check_source(segment: Segment, path: Path) -> None:
    """Raise SegmentError unless the file is the one that was crawled; hashed only where its time changed."""
    if not path.exists():
        raise SegmentError(
            "source", "transient", f"{path}: no such file. Is its disk there? If it moved, crawl again"
        )
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (segment.source_size, segment.source_mtime_ns):
        return
    if stat.st_size != segment.source_size or sha256_of(path) != segment.source_sha256:
        raise SegmentError(
            "source", "permanent", f"{path}: the file changed since the crawl. Run: gvm-prep crawl-manifest"
        )

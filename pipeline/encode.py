"""One segment -> one sample: frames through CLIP, waveform through EnCodec.

Dimensions: F video frames, P patches, D feature width, K codebooks, T code frames, N waveform samples.
Frames are numbered by the seconds from their source's start.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
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
from gvmgen.machine import check_device
from pipeline.cache import FeatureCache
from pipeline.code_cache import CodeCache
from pipeline.failures import SegmentError, is_out_of_memory, stage
from pipeline.manifest import Segment, frames_of
from pipeline.selection import Precision
from pipeline.sources import sha256_of
from shards.spec import FRAME_RATE, SAMPLE_RATE, Sample

Features = dict[int, np.ndarray]  # float16 [P, D] by frame
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_BATCH = 8  # frames; beyond it CLIP gains nothing there
GPU_BATCH = 30  # a segment's
GPU_READERS = 8  # a segment of 30 s is about 10 MB of frames


@dataclass(frozen=True)
class Encoders:
    """The frozen pair that makes a data set."""

    video: VideoEncoder
    audio: AudioCodec
    is_on_gpu: bool = False

    @classmethod
    def load(cls, preset: str, device: str | None = None, precision: Precision | None = None) -> Self:
        """The preset's encoders on `device`; None, on a GPU where there is one.

        precision: of CLIP; None, bfloat16 on a GPU and float32 on a CPU. EnCodec is float32 everywhere.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        config = encoder_config(preset)
        dtype = None if precision is None else DTYPES[precision]
        video = VideoEncoder.load(config, device=device, dtype=dtype)
        return cls(video, AudioCodec.load(config, device=device), is_on_gpu=device.startswith("cuda"))

    @property
    def batch_size(self) -> int:
        """Frames that go through CLIP together."""
        return GPU_BATCH if self.is_on_gpu else CPU_BATCH

    @property
    def num_readers(self) -> int:
        """Segments that are read at a time: many for a GPU; on a CPU they share its cores with CLIP."""
        return max(1, min(GPU_READERS, (os.cpu_count() or 1) // 2)) if self.is_on_gpu else 1

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        return encoder_fingerprint(self.video, self.audio)


@dataclass(frozen=True)
class Media:
    """A segment before the encoders: what ffmpeg gives, and what the cache has already."""

    frames: Mapping[
        int, Tensor
    ]  # [3, 336, 336] by frame, as CLIP wants them; at least those that are not cached
    cached: Features
    sound: np.ndarray  # the waveform, float32 [N], or what the cache has of it: codes, int16 [K, T]


Following = Callable[[], tuple[Segment, Media] | None]  # the next segment, where it is read already


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


def read_media(
    segment: Segment,
    path: Path,
    encoders: Encoders,
    cache: FeatureCache | None,
    codes: CodeCache | None = None,
    deadline_s: float = math.inf,
) -> Media:
    """Picture and sound of a segment, from the same start. Raises SegmentError.

    deadline_s: how long ffmpeg may take over both together.
    """
    ends_at = time.monotonic() + deadline_s
    with stage("source"):
        check_source(segment, path)
    with stage("cache"):
        cached = {} if cache is None else cache.source(segment).read(frames_of(segment))
        sound = None if codes is None else codes.read(segment)
    with stage("frames"):
        frames = read_pictures(path, [f for f in frames_of(segment) if f not in cached], encoders, ends_at)
    with stage("waveform"):
        if sound is None:
            sound = read_waveform(path, segment.start_s, segment.duration_s, SAMPLE_RATE, ends_at=ends_at)
    return Media(frames, cached, sound)


def read_pictures(
    path: Path, wanted: list[int], encoders: Encoders, ends_at: float = math.inf
) -> dict[int, Tensor]:
    """CLIP's input by frame, from the first wanted to the last."""
    if not wanted:
        return {}
    first, last = wanted[0], wanted[-1]
    frames = read_frames(path, first / FRAME_RATE, (last - first + 1) / FRAME_RATE, ends_at=ends_at)
    return {frame: encoders.video.preprocess(picture) for frame, picture in enumerate(frames, start=first)}


class SegmentEncoder:
    """Media -> samples, one after the other. A segment's last batch is filled with frames of the next."""

    def __init__(
        self,
        encoders: Encoders,
        cache: FeatureCache | None,
        progress: Progress,
        following: Following,
        codes: CodeCache | None = None,
    ) -> None:
        self.encoders, self.cache, self.progress, self.following = encoders, cache, progress, following
        self.codes = codes
        self._ahead: tuple[str, Features] = ("", {})  # key of a segment, and what the one before did of it

    def encode(self, segment: Segment, media: Media) -> Sample:
        """The segment's sample. Raises SegmentError."""
        with stage("clip"):
            features = self._encode_frames(segment, media)  # [F, P, D]
        with stage("encodec"):
            codes = self._codes(segment, media)  # [K, T]
        meta = {
            **segment.identity,
            "frame_times_s": [frame / FRAME_RATE for frame in frames_of(segment)],
            "source": segment.source.encode(errors="backslashreplace").decode(),
        }
        return Sample(segment.key, features, codes, meta)

    def _codes(self, segment: Segment, media: Media) -> np.ndarray:
        """int16 [K, T]"""
        if media.sound.dtype == np.int16:
            return media.sound
        codes = self.encoders.audio.encode(torch.from_numpy(media.sound)[None])[0]  # [N] -> [K, T]
        small = codes.cpu().numpy().astype(np.int16)
        if self.codes is not None:
            self.codes.write(segment, small)
        return small

    def _encode_frames(self, segment: Segment, media: Media) -> np.ndarray:
        """float16 [F, P, D]; a frame that the cache got since it was looked into is not encoded either."""
        key, ahead = self._ahead
        features = ahead if key == segment.key else {}
        known = media.cached | self._cached(
            segment, media.frames.keys() - media.cached.keys() - features.keys()
        )
        self.progress.cached(len(known))
        features = known | features
        todo = sorted(media.frames.keys() - features.keys())
        for i in range(0, len(todo), self.encoders.batch_size):
            features |= self._encode_batch(segment, media, todo[i : i + self.encoders.batch_size])
        return _stacked([features[frame] for frame in frames_of(segment)])

    def _encode_batch(self, segment: Segment, media: Media, frames: list[int]) -> Features:
        """Features of these frames, and aside those of the next segment's that fill the batch."""
        following, borrowed = self._borrow(segment, self.encoders.batch_size - len(frames))
        pictures = [media.frames[frame] for frame in frames] + list(borrowed.values())
        batch = clip_features(torch.stack(pictures), self.encoders)
        features = dict(zip(frames, batch, strict=False))
        self._keep(segment, features)
        if following is not None:
            self._ahead = (following.key, dict(zip(borrowed, batch[len(frames) :], strict=True)))
            self._keep(following, self._ahead[1])
        return features

    def _borrow(self, segment: Segment, num_free: int) -> tuple[Segment | None, dict[int, Tensor]]:
        """The next segment, and pictures of it by frame to fill a batch with; none that both show.

        Only on a GPU, whose batches are padded to one size anyway; a CPU would gain nothing.
        """
        following = self.following() if num_free and self.encoders.is_on_gpu else None
        if following is None:
            return None, {}
        other, media = following
        shared = frames_of(segment) if other.source_sha256 == segment.source_sha256 else ()
        free = sorted(media.frames.keys() - media.cached.keys() - set(shared))[:num_free]
        known = self._cached(other, free)
        return other, {frame: media.frames[frame] for frame in free if frame not in known}

    def _cached(self, segment: Segment, frames: Iterable[int]) -> Features:
        frames = list(frames)
        return self.cache.source(segment).read(frames) if self.cache is not None and frames else {}

    def _keep(self, segment: Segment, features: Features) -> None:
        entry = None if self.cache is None else self.cache.source(segment)
        for frame, frame_features in features.items():
            if entry is not None:
                entry.write(frame, frame_features)
        self.progress.encoded(len(features))


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """[P, D] each -> [F, P, D], without a copy where they are one array's rows already, as from the cache."""
    whole = rows[0].base
    if whole is not None and whole.shape == (len(rows), *rows[0].shape):
        places = [row.__array_interface__["data"] for row in rows]
        if places == [row.__array_interface__["data"] for row in whole]:
            return whole
    return np.stack(rows)


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
    except (RuntimeError, MemoryError) as error:
        if len(frames) == 1 or not is_out_of_memory(error):
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

"""Batches cross the borders of segments, and every frame still has its own features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.cache import FeatureCache
from pipeline.encode import Encoders, Media, Progress, SegmentEncoder
from pipeline.failures import SegmentError
from pipeline.manifest import Segment, frames_of
from shards.spec import Sample

DURATION_S = 3


class MeanClip:
    """A CLIP whose features are a frame's mean; it notes the frames of each batch, without padding."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, frames: Tensor) -> Tensor:
        self.batches.append(len(frames.flatten(1)[:, 0].unique()))
        return frames.half().mean(dim=(1, 2, 3))[:, None, None].expand(-1, 577, 2)


class SilentCodec:
    def encode(self, waveform: Tensor) -> Tensor:
        return torch.zeros(1, 4, 50 * DURATION_S, dtype=torch.long)


def segment(source: int, start_s: int = 0) -> Segment:
    return Segment(
        source=f"{source}.mp4",
        source_size=1,
        source_mtime_ns=1,
        source_sha256=f"{source:02x}" * 32,
        source_duration_s=60.0,
        key=f"{source}_{start_s}",
        start_s=start_s,
        duration_s=float(DURATION_S),
        group=str(source),
        split="train",
        shard=0,
    )


def value(of: Segment, frame: int) -> int:
    """What every pixel of a frame is."""
    return int(of.source_sha256[:2], 16) * 20 + frame


def media(of: Segment) -> Media:
    frames = {f: torch.full((3, 2, 2), value(of, f), dtype=torch.uint8) for f in frames_of(of)}
    return Media(frames, {}, np.zeros(32_000 * DURATION_S, np.float32))


def encode(
    segments: Sequence[Segment], clip: MeanClip, cache: FeatureCache | None = None, is_on_gpu: bool = True
) -> Iterator[tuple[Segment, Sample]]:
    waiting = [(each, media(each)) for each in segments]
    encoders = Encoders(clip, SilentCodec(), is_on_gpu)  # type: ignore[arg-type]
    encoder = SegmentEncoder(encoders, cache, Progress(), lambda: waiting[0] if waiting else None)
    while waiting:
        each, pictures = waiting.pop(0)
        yield each, encoder.encode(each, pictures)


def assert_own_features(each: Segment, sample: Sample) -> None:
    assert sample.key == each.key
    assert sample.features[:, 0, 0].tolist() == [value(each, frame) for frame in frames_of(each)]


def test_a_batch_is_filled_with_frames_of_the_segment_that_follows() -> None:
    clip = MeanClip()
    for each, sample in encode([segment(source) for source in range(5)], clip):
        assert_own_features(each, sample)
    assert clip.batches == [6, 6, 3]


def test_on_a_cpu_a_segment_stays_by_itself() -> None:
    clip = MeanClip()
    assert len(list(encode([segment(source) for source in range(3)], clip, is_on_gpu=False))) == 3
    assert clip.batches == [3, 3, 3]


@pytest.mark.parametrize("has_cache", [False, True])
def test_frames_that_two_segments_share_are_borrowed_by_neither(tmp_path: Path, has_cache: bool) -> None:
    clip = MeanClip()
    cache = FeatureCache(tmp_path, {}) if has_cache else None
    for each, sample in encode([segment(1, start_s) for start_s in range(4)], clip, cache):
        assert_own_features(each, sample)
    num_frames = DURATION_S + 3 if has_cache else 4 * DURATION_S
    assert sum(clip.batches) == num_frames


def test_what_the_segment_before_encoded_is_lost_on_no_other_segment() -> None:
    """The one that follows may be skipped: another process has its shard."""
    clip = MeanClip()
    first, skipped, last = (segment(source) for source in range(3))
    encoder = SegmentEncoder(
        Encoders(clip, SilentCodec(), is_on_gpu=True),  # type: ignore[arg-type]
        None,
        Progress(),
        iter([(skipped, media(skipped)), None]).__next__,
    )
    assert_own_features(first, encoder.encode(first, media(first)))
    assert_own_features(last, encoder.encode(last, media(last)))


def test_a_batch_that_fails_blames_the_segment_at_hand_and_not_the_one_that_follows() -> None:
    class BrokenAtFirst(MeanClip):
        def encode(self, frames: Tensor) -> Tensor:
            features = super().encode(frames)
            if len(self.batches) == 1:
                raise ValueError("broken")
            return features

    waiting = [segment(0), segment(1)]
    following = iter([(waiting[1], media(waiting[1])), None]).__next__
    encoder = SegmentEncoder(
        Encoders(BrokenAtFirst(), SilentCodec(), is_on_gpu=True), None, Progress(), following
    )  # type: ignore[arg-type]
    with pytest.raises(SegmentError, match="broken"):
        encoder.encode(waiting[0], media(waiting[0]))
    assert_own_features(waiting[1], encoder.encode(waiting[1], media(waiting[1])))

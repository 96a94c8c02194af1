"""What counts as whose fault, and when a run stops."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from torch import Tensor

from gvmgen.encoders.presets import MissingWeightsError
from gvmgen.encoders.process import MediaError, MediaTimeoutError
from pipeline.encode import Encoders, clip_features
from pipeline.failures import Breaker, SegmentError, stage


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MediaError("cut short"), "permanent"),
        (MediaTimeoutError("a slow disk"), "transient"),
        (OSError(errno.EIO, "the disk stumbled"), "transient"),
        (MemoryError(), "transient"),
        (torch.OutOfMemoryError("CUDA out of memory"), "transient"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "transient"),
        (KeyError("a slip of ours"), "bug"),
    ],
)
def test_a_failure_is_told_apart_by_whether_trying_again_can_help(error: Exception, kind: str) -> None:
    with pytest.raises(SegmentError) as caught, stage("waveform"):
        raise error
    assert (caught.value.stage, caught.value.kind, caught.value.__cause__) == ("waveform", kind, error)
    assert str(caught.value)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(SegmentError, match=r"(?s)test_failures\.py.*KeyError"), stage("clip"):
        raise KeyError("a slip of ours")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "disk full"), OSError(errno.EROFS, "read-only"), MissingWeightsError("none")],
)
def test_what_no_segment_is_to_blame_for_goes_through(error: Exception) -> None:
    with pytest.raises(type(error)), stage("clip"):
        raise error


def test_a_run_stops_when_segments_in_a_row_fail_at_one_stage() -> None:
    breaker = Breaker(limit=3)
    for name in ("clip", "clip", "frames", "frames"):
        breaker.failed(SegmentError(name, "bug", "broken"))
    breaker.passed()
    breaker.failed(SegmentError("frames", "bug", "broken"))
    breaker.failed(SegmentError("frames", "bug", "broken"))
    with pytest.raises(ValueError, match=r"3 segments in a row failed at the stage 'frames'.*broken"):
        breaker.failed(SegmentError("frames", "bug", "broken"))


def test_a_breaker_of_zero_never_stops_a_run() -> None:
    breaker = Breaker(limit=0)
    for _ in range(100):
        breaker.failed(SegmentError("clip", "bug", "broken"))


class SmallMemory:
    """A CLIP that has room for two frames at a time; a frame's features are its mean."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def encode(self, frames: Tensor) -> Tensor:
        if len(frames) > 2:
            raise self.error
        return frames.half().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("is_on_gpu", "error"),
    [
        (False, RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        (True, torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_where_memory_is_short_the_batch_is_halved(is_on_gpu: bool, error: Exception) -> None:
    encoders = Encoders(SmallMemory(error), None, is_on_gpu)  # type: ignore[arg-type]
    frames = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    np.testing.assert_array_equal(clip_features(frames, encoders), np.arange(7))


def test_other_errors_of_clip_are_not_taken_for_a_lack_of_memory() -> None:
    encoders = Encoders(SmallMemory(RuntimeError("wrong shape")), None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="wrong shape"):
        clip_features(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), encoders)

"""Features in half the space: int8 with one scale a channel, the same for every shard of a data set.

A channel's scale comes from calibration. Level 126 is the largest value that was met then; level 127 stands
for all beyond it and is counted as saturated. So the count, too, is a pure function of the stored bytes, and
levels that are decoded and encoded again are the same levels.

Dimensions: F video frames, P patches, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

TOP_LEVEL = 127  # and -127; -128 is not used
SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: every decoded value keeps its precision
LARGEST_SCALE = 515.5  # 127 times it is still a finite float16


@dataclass(frozen=True)
class Int8Codec:
    """float16 features <-> int8 levels."""

    scales: tuple[float, ...]  # value of level 1 by channel [D]; float16 numbers, so JSON keeps them exactly

    @classmethod
    def calibrated(cls, largest: np.ndarray) -> Self:
        """The codec for channels whose largest magnitude is `largest`, float [D]."""
        scales = np.clip(largest.astype(np.float32) / (TOP_LEVEL - 1), SMALLEST_SCALE, LARGEST_SCALE)
        return cls(tuple(scales.astype(np.float16).tolist()))

    def encode(self, features: np.ndarray) -> np.ndarray:
        """Nearest levels. float16 [F, P, D] -> int8 [F, P, D]. Raises ValueError for another width."""
        if features.shape[-1] != len(self.scales):
            raise ValueError(f"features are {features.shape[-1]} wide, there are {len(self.scales)} scales")
        levels = np.empty(features.shape, np.int8)
        for frame, out in zip(features, levels, strict=True):  # a frame stays in the processor's cache
            exact = frame / self._scales
            np.rint(exact, out=exact)
            np.clip(exact, -TOP_LEVEL, TOP_LEVEL, out=exact)
            out[...] = exact
        return levels

    def decode(self, levels: np.ndarray, out: np.ndarray) -> None:
        """int8 [F, P, D] -> float16 [F, P, D] in `out`: the float16 nearest to level times scale."""
        for frame, values in zip(levels, out, strict=True):
            values[...] = frame * self._scales

    @cached_property
    def _scales(self) -> np.ndarray:
        return np.array(self.scales, np.float32)


def with_codec(encoders: Mapping[str, Any], codec: Int8Codec | None) -> dict[str, Any]:
    """The fingerprint of shards: the encoders', and how the features lie where not as float16."""
    if codec is None:
        return dict(encoders)
    sha256 = hashlib.sha256(np.array(codec.scales, np.float32).tobytes()).hexdigest()
    return {**encoders, "features": {"codec": "int8 per channel", "scales_sha256": sha256}}


def num_saturated(levels: np.ndarray) -> int:
    """Values beyond the calibrated range."""
    return int(np.count_nonzero(np.abs(levels) == TOP_LEVEL))

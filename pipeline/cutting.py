"""From a source video to its segments: where they begin and end, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.manifest import Source
from pipeline.sources import LeftOut

TOO_SHORT = "too short"


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """How sources are cut into segments, and dealt into splits and shards."""

    segment_s: int = 30  # the publication's
    stride_s: int = 30
    min_s: float = 5.0  # a 15-s video is kept whole; a shorter rest costs a sample more than it teaches
    num_shards: int = 100
    test_share: float = 0.15  # the publication's
    seed: int = 0
    published_splits: bool = False  # a list's own split, where it has one, instead of the seeded one

    def __post_init__(self) -> None:
        for name in ("segment_s", "stride_s", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.min_s <= self.segment_s:
            raise ValueError(
                f"min_s is {self.min_s}; it must be above 0 and at most segment_s, {self.segment_s}"
            )
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"test_share is {self.test_share}; it must be between 0 and 1")


@dataclass(frozen=True)
class Piece:
    """An excerpt of a source."""

    start_s: int
    duration_s: float


def cut(source: Source, config: CrawlConfig) -> Iterator[Piece | LeftOut]:
    """The source's pieces, each once, and those too short to be segments. Where a list names excerpts, only
    those are cut."""
    seen: set[Piece] = set()
    for start_s, end_s in source.about.get("excerpts") or [(0.0, None)]:
        stop_s = source.source_duration_s if end_s is None else min(end_s, source.source_duration_s)
        for piece in _cut_excerpt(math.ceil(start_s), stop_s, config):
            if piece in seen:
                continue
            seen.add(piece)
            yield piece if piece.duration_s >= config.min_s else _too_short(source, piece, config)


def _cut_excerpt(begin_s: int, end_s: float, config: CrawlConfig) -> Iterator[Piece]:
    for start_s in range(begin_s, max(begin_s + 1, int(end_s)), config.stride_s):
        yield Piece(start_s, max(0.0, round(min(config.segment_s, end_s - start_s), 3)))
        if start_s + config.segment_s >= end_s:
            return


def _too_short(source: Source, piece: Piece, config: CrawlConfig) -> LeftOut:
    message = f"{piece.duration_s:g} s from {piece.start_s} s on; --min-s is {config.min_s:g}"
    return LeftOut(
        source=source,
        reason=TOO_SHORT,
        message=message,
        start_s=piece.start_s,
        duration_s=piece.duration_s,
    )

"""What becomes of cached features once their shard is complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pipeline.cache import FeatureCache
from pipeline.code_cache import CodeCache
from pipeline.manifest import Segment, frames_of, spanned_frames
from pipeline.plan import Plan, ShardPlan

CacheMode = Literal["off", "keep", "until-packed"]


@dataclass(frozen=True)
class Tidier:
    """`keep`: marks sources that are cached whole. `until-packed`: clears frames that no shard waits for."""

    mode: CacheMode
    cache: FeatureCache
    codes: CodeCache
    plan: Plan
    rows: Mapping[str, Segment]  # by key
    complete: Callable[[], Collection[int]]  # numbers of the shards that are complete at this moment

    def tidy(self, *shards: ShardPlan) -> None:
        """The shards are complete; they may have been so for long."""
        complete = self.complete()
        for segment in (self.rows[key] for shard in shards for key in shard.keys if key in self.rows):
            if self.mode == "keep":
                self.cache.source(segment).mark_if_complete()
            elif self.mode == "until-packed":
                awaited = self._awaited(segment, complete)
                self.cache.source(segment).discard(set(frames_of(segment)) - awaited)
                self.codes.discard(segment)

    def _awaited(self, segment: Segment, complete: Collection[int]) -> set[int]:
        """Frames of the segment's source that incomplete shards need."""
        frames: set[int] = set()
        for shard, planned in self._by_source[segment.source_sha256]:
            if shard not in complete:
                frames.update(planned)
        return frames

    @cached_property
    def _by_source(self) -> Mapping[str, list[tuple[int, range]]]:
        """(shard, frames) of all planned segments, by their source."""
        planned = defaultdict(list)
        for shard in self.plan.values():
            for segment in shard.segments:
                frames = spanned_frames(segment["start_s"], segment["duration_s"])
                planned[segment["source_sha256"]].append((shard.shard, frames))
        return planned

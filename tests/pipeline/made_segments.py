"""Rows of a manifest whose videos need not exist."""

from __future__ import annotations

from pipeline.manifest import Segment, segment_key


def segment(number: int, shard: int | None = None) -> Segment:
    """A segment of 2 s, the only one of its source; in the shard of its own number unless told."""
    sha256 = f"{number:064x}"[::-1]
    return Segment(
        source=f"{number}.mp4",
        source_size=1,
        source_mtime_ns=1,
        source_sha256=sha256,
        source_duration_s=2.0,
        key=segment_key(sha256, 0, 2.0),
        start_s=0,
        duration_s=2.0,
        group=sha256[:16],
        split="train",
        shard=number if shard is None else shard,
    )

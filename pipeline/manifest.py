"""The manifest: one row a segment of a source video, with its name, split and shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.jsonl import read_rows, write_rows
from shards.spec import num_frames

Split = Literal["train", "test"]
MANIFEST_NAME = "manifest.jsonl"
OPTIONAL = ("about", "dropped")  # fields that rows of an earlier version do not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source video as the crawl found it."""

    source: str  # path, relative to the manifest's folder where it lies inside
    source_size: int  # bytes; with the time below, tells without reading whether the file changed
    source_mtime_ns: int
    source_sha256: str  # of the whole file: the content's identity, wherever the file lies
    source_duration_s: float
    about: dict[str, Any] = field(default_factory=dict)  # where it comes from: see pipeline/gather.py

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SOURCE_FIELDS}


SOURCE_FIELDS = tuple(f.name for f in fields(Source))


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Source):
    """One excerpt of a source video: a row of the manifest."""

    key: str
    start_s: int  # whole seconds, so that overlapping segments share their frames
    duration_s: float
    group: str  # segments of one group share a split
    split: Split
    shard: int  # by hash; `plan.py` has the last word
    dropped: str | None = None  # why the filters leave it out; see pipeline/filtering.py

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SEGMENT_FIELDS}

    @property
    def identity(self) -> dict[str, Any]:
        """What the data set depends on. A file that only moved keeps its identity."""
        return {
            "duration_s": self.duration_s,
            "key": self.key,
            "source_sha256": self.source_sha256,
            "split": self.split,
            "start_s": self.start_s,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any], where: str) -> Self:
        """A row; fields that this version does not know are left aside. `where` opens an error."""
        missing = [name for name in SEGMENT_FIELDS if name not in row and name not in OPTIONAL]
        if missing:
            raise ValueError(f"{where}: the row lacks {', '.join(missing)}. Run: gvm-prep crawl-manifest")
        return cls(**{name: row[name] for name in SEGMENT_FIELDS if name in row})


SEGMENT_FIELDS = tuple(f.name for f in fields(Segment))


def segment_key(source_sha256: str, start_s: int, duration_s: float) -> str:
    """A name that depends on content alone: the same excerpt of the same file has it on every machine."""
    return f"{source_sha256[:16]}_{start_s:05d}_{round(duration_s * 1000):06d}"


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that looks drawn at random and is always the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(group: str, test_share: float, seed: int) -> Split:
    """By hash of the group: stable when rows are added, and no group is in both splits."""
    return "test" if hash_fraction(f"split {seed} {group}") < test_share else "train"


def shard_of(key: str, num_shards: int) -> int:
    return int(hash_fraction(f"shard {key}") * num_shards)


def frames_of(segment: Segment) -> range:
    """The source's frames that the segment shows, numbered by their seconds from the source's start."""
    return spanned_frames(segment.start_s, segment.duration_s)


def spanned_frames(start_s: int, duration_s: float) -> range:
    return range(start_s, start_s + num_frames(duration_s))


def write_manifest(path: Path, segments: Iterable[Segment]) -> None:
    """Replace the manifest at once. The segments come by key."""
    write_rows(path, (segment.to_json() for segment in segments))


def require_manifest(path: Path) -> None:
    """Raise FileNotFoundError, with the command that makes a manifest, unless there is one."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no manifest there. Run: gvm-prep crawl-manifest FOLDER --out {path}"
        )


def read_manifest(path: Path) -> Iterator[Segment]:
    """The manifest's segments, without those that the filters dropped. Raises FileNotFoundError with the
    command that makes one."""
    require_manifest(path)
    rows = enumerate(read_rows(path), start=1)
    return (Segment.from_json(r, f"{path}: line {n}") for n, r in rows if r.get("dropped") is None)


def source_path(manifest: Path, segment: Source) -> Path:
    """Where the source file lies."""
    return manifest.parent / segment.source  # an absolute source replaces the folder

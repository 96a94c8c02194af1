"""What every source yields: candidates for the training set, and problems that say why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "test",  # the manifest knows two splits; what a list holds out is never trained on
    "valid": "test",
    "validation": "test",
    "dev": "test",
}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One video that a source offers, before anything was fetched or opened."""

    location: str  # an absolute path or a URL
    origin: str  # where the offer was found: `SymMV.csv line 12`, a folder
    source_name: str  # what the report counts it under
    groups: tuple[str, ...] = ()  # what must not be torn apart by the split: song:…, dance:…, film:…
    kind: str | None = None  # MV, movie, vlog, comic, documentary (publication, table 1)
    style: str | None = None  # Western, Chinese, ensemble
    licence: str | None = None
    terms: str | None = None
    split: Split | None = None  # as the list published it
    start_s: float = 0.0
    end_s: float | None = None  # None: to the end of the video
    music: str | None = None  # a path or URL where the music is a file of its own


FAILED = "failed"  # trying again will not help
DEFERRED = "deferred"  # a later crawl tries again


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a source offered and cannot be used."""

    location: str
    origin: str
    reason: str
    status: str = FAILED


Offer = Candidate | Problem


def split_name(text: str) -> Split | None:
    """`train` or `test` for any of the usual names; None for none of them."""
    return SPLIT_NAMES.get(text.strip().lower())

"""Local files, folders and globs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.offers.candidate import Candidate, Offer
from pipeline.sources import find_files


def read_local(spec: str) -> Iterator[Offer]:
    """The videos that `find_files` finds. The folder below the named one is the kind: `videos/MV/a.mp4`
    is an MV."""
    place = Path(spec).expanduser()
    for path in find_files([place])[0]:
        yield Candidate(
            location=str(path), origin=spec, source_name=_source_name(place, path), kind=_kind(place, path)
        )


def _source_name(place: Path, path: Path) -> str:
    return place.absolute().name if place.is_dir() else path.parent.name


def _kind(place: Path, path: Path) -> str | None:
    if not place.is_dir():
        return None
    below = path.relative_to(place.absolute()).parts
    return below[0] if len(below) > 1 else None

"""Local files, folders and globs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.offers.candidate import Candidate, Offer, Problem
from pipeline.sources import NO_VIDEO_MESSAGE, NO_VIDEO_NAME, absolute, find_files


def read_local(spec: str) -> Iterator[Offer]:
    """The videos that `find_files` finds. The folder below the named one is the kind: `videos/MV/a.mp4`
    is an MV."""
    place = Path(spec).expanduser()
    for path, is_video in find_files(place):
        if is_video:
            source_name = _source_name(place, path)
            yield Candidate(location=str(path), origin=spec, source_name=source_name, kind=_kind(place, path))
        else:
            yield Problem(location=str(path), origin=spec, reason=NO_VIDEO_MESSAGE, status=NO_VIDEO_NAME)


def _source_name(place: Path, path: Path) -> str:
    return absolute(place).name if place.is_dir() else path.parent.name


def _kind(place: Path, path: Path) -> str | None:
    if not place.is_dir():
        return None
    below = path.relative_to(absolute(place)).parts
    return below[0] if len(below) > 1 else None

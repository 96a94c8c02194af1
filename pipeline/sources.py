"""Source videos: found, opened, and told apart by their content.

A source is read whole once, for its hash; a later look recognises it by path, size and time.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.containers import is_text, what_it_is
from pipeline.manifest import SOURCE_FIELDS, Source
from pipeline.parallel import ordered_map

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
NO_VIDEO_NAME, UNREADABLE, NO_PICTURE, NO_SOUND = (
    "no video by its name",
    "unreadable",
    "no picture",
    "no sound",
)
NO_VIDEO_MESSAGE = f"a video's name ends in {', '.join(VIDEO_SUFFIXES)}"
NUM_THREADS = 8  # hashing waits for the disk, probing for both; Python's lock is free in either


LEFT_OUT_FIELDS = ("reason", "message", "start_s", "duration_s")
SETTLED = (NO_PICTURE, NO_SOUND)  # as long as the file stays; what cannot be read today may be tomorrow


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file, or a piece of one, that gives no segment, and why."""

    source: Source
    reason: str
    message: str
    start_s: int | None = None  # of the piece; None: the whole file
    duration_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        return self.source.to_json() | {name: getattr(self, name) for name in LEFT_OUT_FIELDS}


Look = Source | LeftOut


def look_of(row: dict[str, Any]) -> Look:
    """The look that a row of the manifest, or of what was left out, came from. What has a hash can be cut."""
    source = Source(**{name: row[name] for name in SOURCE_FIELDS if name in row})
    if source.source_sha256:
        return source
    return LeftOut(source=source, **{name: row[name] for name in LEFT_OUT_FIELDS})


def is_settled(look: Look) -> bool:
    """Whether it still holds as long as the file is unchanged."""
    return look.reason in SETTLED if isinstance(look, LeftOut) else bool(look.source_sha256)


def name_of(look: Look) -> str:
    return look.source.source if isinstance(look, LeftOut) else look.source


def find_files(place: Path) -> Iterator[tuple[Path, bool]]:
    """(file, whether to look at it) of a file, a folder or a glob pattern, in order.

    A folder is searched through, hidden names left aside; only files with a video's name are to be looked at.
    """
    matches = [place] if place.exists() else sorted(_matches(place))
    if not matches:
        raise FileNotFoundError(f"{place}: no such file or folder, and no file matches it as a pattern")
    for match in matches:
        if match.is_dir():
            yield from ((path, path.suffix.lower() in VIDEO_SUFFIXES) for path in _walk(match))
        else:
            yield absolute(match), True


def look_at_all(names: Iterable[tuple[str, Look | None]], folder: Path) -> Iterator[tuple[Look, bool]]:
    """(what each file is, whether it had to be read), in order.

    names: the files, with what is known of them. folder: where the manifest lies.
    """

    def look(item: tuple[str, Look | None]) -> tuple[Look, bool]:
        name, known = item
        path = folder / name  # an absolute name replaces the folder
        try:
            stat = path.stat()
        except OSError as error:
            return LeftOut(source=unseen(name), reason=UNREADABLE, message=str(error)), True
        if known is not None and _unchanged(known, stat):
            return known, False
        return _look_at(path, name, stat), True

    yield from ordered_map(look, names, NUM_THREADS)


def source_name(path: Path, folder: Path) -> str:
    """The path relative to `folder` where it lies inside, else absolute."""
    path, folder = absolute(path), absolute(folder)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def sha256_of(path: Path) -> str:
    """Hash of the whole file, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _look_at(path: Path, name: str, stat: os.stat_result) -> Look:
    from gvmgen.encoders.media import MediaError, probe  # loads PyAV

    source = _source(name, stat)
    try:
        if is_text(path):
            return LeftOut(source=source, reason=UNREADABLE, message=f"{path}: {what_it_is(path)}")
        info = probe(path, needs_picture=False)
    except (MediaError, OSError) as error:
        return LeftOut(source=source, reason=UNREADABLE, message=str(error))
    if not info.has_video:
        return LeftOut(source=source, reason=NO_PICTURE, message="the file has no picture stream")
    if not info.has_audio:
        return LeftOut(
            source=source, reason=NO_SOUND, message="the file has no sound stream to learn music from"
        )
    both_s = min(info.video_end_s, info.audio_end_s)  # what comes after has picture or sound alone
    return _source(name, stat, sha256_of(path), math.floor(both_s * 1000) / 1000)


def unseen(location: str) -> Source:
    """A source that no crawl has opened."""
    return Source(source=location, source_size=0, source_mtime_ns=0, source_sha256="", source_duration_s=0.0)


def _source(name: str, stat: os.stat_result, sha256: str = "", duration_s: float = 0.0) -> Source:
    return Source(
        source=name,
        source_size=stat.st_size,
        source_mtime_ns=stat.st_mtime_ns,
        source_sha256=sha256,
        source_duration_s=duration_s,
    )


def _unchanged(look: Look, stat: os.stat_result) -> bool:
    source = look.source if isinstance(look, LeftOut) else look
    return (source.source_size, source.source_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def _matches(pattern: Path) -> list[Path]:
    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 - may be absolute


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(absolute(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def absolute(path: Path) -> Path:
    """Absolute, and as the user named it: links are not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow them

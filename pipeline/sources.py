"""Source videos: found, opened, and told apart by their content.

A source is read whole once, for its hash; a later look recognises it by path, size and time.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.containers import is_text, what_it_is
from pipeline.manifest import Source
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file, or a piece of one, that gives no segment, and why."""

    source: Source
    reason: str
    message: str
    start_s: int | None = None  # of the piece; None: the whole file
    duration_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        return row.pop("source") | row


Look = Source | LeftOut


def find_files(sources: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(files to look at, files in folders whose names are no video's), each once, sorted.

    A source is a file, a folder (searched through, hidden names left aside) or a glob pattern.
    """
    named: set[Path] = set()
    in_folders: set[Path] = set()
    for source in sources:
        matches = [source] if source.exists() else _matches(source)
        if not matches:
            raise FileNotFoundError(f"{source}: no such file or folder, and no file matches it as a pattern")
        for match in matches:
            if match.is_dir():
                in_folders.update(_walk(match))
            else:
                named.add(absolute(match))
    videos = {path for path in in_folders if path.suffix.lower() in VIDEO_SUFFIXES}
    return sorted(named | videos), sorted(in_folders - videos - named)


def look_at_all(paths: Iterable[Path], folder: Path, known: dict[str, Look]) -> Iterator[tuple[Look, bool]]:
    """(what each file is, whether it had to be read), in order. `folder` is where the manifest lies."""

    def look(path: Path) -> tuple[Look, bool]:
        stat = path.stat()
        name = source_name(path, folder)
        before = known.get(name)
        if before is not None and _unchanged(before, stat):
            return before, False
        return _look_at(path, name, stat), True

    yield from ordered_map(look, paths, NUM_THREADS)


def not_a_video(path: Path, folder: Path) -> LeftOut:
    """The row of a file that nobody looks into."""
    source = _source(source_name(path, folder), path.lstat())
    return LeftOut(source=source, reason=NO_VIDEO_NAME, message=NO_VIDEO_MESSAGE)


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
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def absolute(path: Path) -> Path:
    """Absolute, and as the user named it: links are not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow them

"""Which music belongs to which video: by the file's name. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac")
MIDI = (".mid", ".midi")
# Where a system writes several, the one nearest to what is heard counts.
_PREFERRED = (*SOUNDS, *VIDEOS, *MIDI)


@dataclass(frozen=True, kw_only=True)
class System:
    """One system's music."""

    name: str
    takes: dict[str, tuple[Path, ...]]  # by the video's name; the first take first
    missing: tuple[str, ...]  # videos without music
    extra: tuple[str, ...]  # files that belong to none of the videos

    @property
    def files(self) -> Iterator[Path]:
        """All its takes."""
        return (path for takes in self.takes.values() for path in takes)


def find_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by name without extension, sorted. Raises ValueError where there are none, or
    two of one name."""
    found: dict[str, Path] = {}
    for path in _files(folder, "--videos"):
        if path.suffix.lower() not in VIDEOS:
            continue
        if path.stem in found:
            raise ValueError(f"{folder}: {found[path.stem].name} and {path.name} have one name; rename one")
        found[path.stem] = path
    if not found:
        raise ValueError(f"--videos {folder}: holds no video; known: {', '.join(VIDEOS)}")
    return found


def find_system(name: str, folder: Path, videos: dict[str, Path]) -> System:
    """`find_music` of --system NAME=FOLDER."""
    return find_music(name, folder, videos, f"--system {name}=")


def find_music(name: str, folder: Path, videos: dict[str, Path], option: str) -> System:
    """The music of a folder: NAME.wav for NAME.mp4; NAME.2.wav, NAME.3.wav … are further takes.

    option: what names the folder, for errors. Raises ValueError where there is none for any of the videos.
    """
    takes: dict[str, dict[int, Path]] = {video: {} for video in videos}
    extra = []
    for path in _files(folder, option):
        if path.suffix.lower() not in _PREFERRED:
            continue
        video, take = _take(path.stem, videos)
        if video not in takes:
            extra.append(path.name)
            continue
        before = takes[video].get(take)
        if before is None or _rank(path) < _rank(before):
            takes[video][take] = path
    kept = {video: tuple(found[n] for n in sorted(found)) for video, found in takes.items() if found}
    missing = tuple(video for video in videos if video not in kept)
    if not kept:
        raise ValueError(
            f"{_given(option, folder)}: no music for any of the {len(videos)} videos; "
            f"name the files as the videos, such as {next(iter(videos))}.wav"
        )
    return System(name=name, takes=kept, missing=missing, extra=tuple(extra))


def named_folder(option: str) -> tuple[str, Path]:
    """NAME=FOLDER. Raises ValueError for anything else."""
    name, equals, folder = option.partition("=")
    if not (equals and name and folder):
        raise ValueError(f"--system {option}: wants NAME=FOLDER, such as --system ours=out/music")
    return name, Path(folder)


def _take(stem: str, videos: dict[str, Path]) -> tuple[str, int]:
    """The video's name and the take's number; a video called `a.2` is no second take of `a`."""
    video, _, number = stem.rpartition(".")
    if stem not in videos and number.isdigit() and video:
        return video, int(number)
    return stem, 1


def _rank(path: Path) -> int:
    return _PREFERRED.index(path.suffix.lower())


def _given(option: str, folder: Path) -> str:
    return f"{option}{'' if option.endswith('=') else ' '}{folder}"


def _files(folder: Path, option: str) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{_given(option, folder)}: no such folder")
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))

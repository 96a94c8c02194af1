"""The data sets of the publication, and the best legal one, each read from the list as published.

What a line holds was read in the published lists (2026-11); licences are those their authors state.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.offers.candidate import Candidate, Offer, Problem, Split, split_name
from pipeline.sources import VIDEO_SUFFIXES

YOUTUBE = "https://www.youtube.com/watch?v="
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
AIST_NAME = re.compile(r"(g[A-Z]{2})_(s[A-Z]{2})_(c\d{2}|cAll)_(d\d{2})_(m[A-Z]{2}\d)_(ch\d{2})")
AIST_URL = "https://aistdancedb.ongaaccel.jp/v1.0.0/video/10M/{name}.mp4"
TIKTOK_NAME = re.compile(r"(\d{6})_(\d+)_(\d+)_seg\d+\.(?:npy|wav|mp4)$")
OSSL_HUB = "hf://datasets/McAuley-Lab/OSSL-v2"
CLIP_ID = re.compile(r"[A-Za-z0-9_.-]+")


def read_symmv(spec: str) -> Iterator[Offer]:
    """SymMV.csv: tab-separated `index, youtube_url, tonality[, shazam_id]`; songs without a shazam_id
    exist."""
    path = _list_file(spec, "SymMV.csv")
    for number, line in _lines(path):
        fields = line.split("\t")
        if fields[0] == "index":
            continue
        if len(fields) not in (3, 4) or not fields[1].startswith(("https://", "http://")):
            yield _malformed(
                path, number, line, "index, URL, tonality and perhaps a Shazam id, tab-separated"
            )
            continue
        song = fields[3].strip() if len(fields) == 4 else ""
        yield Candidate(
            location=fields[1].rstrip("?"),
            origin=f"{path.name} line {number}",
            source_name="SymMV",
            groups=(f"song:shazam:{song}",) if song else (f"video:symmv:{fields[0]}",),
            kind="MV",
            licence="CC-BY-NC-SA-4.0 (the list); the videos are their owners'",
        )


def read_muvi_sync(spec: str) -> Iterator[Offer]:
    """MuVi-Sync's idlist.txt: `001-Title<TAB>YouTube id`; the split from split/v1/*.txt beside it."""
    path = _list_file(spec, "idlist.txt")
    splits = _muvi_splits(path.parent / "split" / "v1")
    for number, line in _lines(path):
        match = re.fullmatch(r"(\d+)-(.*)\t(\S+)", line)
        if not match or not YOUTUBE_ID.fullmatch(match[3]):
            yield _malformed(path, number, line, "`001-Title`, a tab and a YouTube id")
            continue
        yield Candidate(
            location=YOUTUBE + match[3],
            origin=f"{path.name} line {number}",
            source_name="MuVi-Sync",
            groups=(f"video:muvi_sync:{match[1]}",),
            kind="MV",
            style="Western",
            split=splits.get(match[1]),
            licence="the videos are their owners'",
        )


def _muvi_splits(folder: Path) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for path in sorted(folder.glob("*.txt")):
        split = split_name(path.stem)
        if split:
            splits.update((line.strip(), split) for _, line in _lines(path))
    return splits


def read_aist(spec: str) -> Iterator[Offer]:
    """AIST++: lines that hold a video's name, as names, URLs or paths; the name encodes camera, dancer
    and song.

    The nine cameras of a dance share its song, and 60 songs serve all dances: the song is the group.
    """
    path = _list_file(spec, "*.txt", "*.csv")
    seen: set[str] = set()
    for number, line in _lines(path):
        match = AIST_NAME.search(line)
        if not match:
            yield _malformed(path, number, line, "a name such as gWA_sFM_c01_d27_mWA2_ch21")
        elif match[0] not in seen:
            seen.add(match[0])
            genre, _, _, dancer, song, choreography = match.groups()
            yield Candidate(
                location=_beside(path, match[0]) or AIST_URL.format(name=match[0]),
                origin=f"{path.name} line {number}",
                source_name="AIST++",
                groups=(f"song:aist:{song}", f"dance:aist:{genre}_{dancer}_{song}_{choreography}"),
                kind="dance",
                licence="AIST Dance Video Database terms of use",
                terms="https://aistdancedb.ongaaccel.jp/terms_of_use/",
            )


def read_tiktok(spec: str) -> Iterator[Offer]:
    """D2M-GAN's tiktok_{video,audio,motion}_{train,test}_segment.txt: paths on the authors' machine, one
    2-s piece a line.

    The videos come from the project's page as one archive; they are looked for beside the list. Name: batch,
    song, video, piece. The pieces of a video make one candidate: this pipeline cuts for itself.
    """
    for path in _list_files(spec, "tiktok_*_segment.txt"):
        seen: set[str] = set()
        for number, line in _lines(path):
            match = TIKTOK_NAME.search(line)
            if not match:
                yield _malformed(path, number, line, "a path that ends in 000007_7_188_seg3.npy")
                continue
            batch, song, video = match.groups()
            name = f"{batch}_{song}_{video}"
            if name not in seen:
                seen.add(name)
                yield _tiktok_video(path, number, name, f"song:tiktok:{batch}_{song}")


def _tiktok_video(path: Path, number: int, name: str, group: str) -> Offer:
    origin = f"{path.name} line {number}"
    found = _beside(path, name)
    if found is None:
        reason = f"{origin}: no video {name} beside the list; fetch the archive from the D2M-GAN project page"
        return Problem(location=name, origin=origin, reason=reason)
    return Candidate(
        location=found,
        origin=origin,
        source_name="TikTok",
        groups=(group,),
        kind="dance",
        split="test" if "_test_" in path.name else "train",
        licence="the videos are their owners'",
    )


def read_ossl(spec: str) -> Iterator[Offer]:
    """OSSL-v2 from its hub (`ossl:`) or a folder: splits/{train,test}.txt of clip ids, film before the
    clip's number.

    Picture and music are two files: <split>/video/<film>/<clip>.mp4 and <split>/audio/<film>/<clip>.wav.
    """
    root = (spec or OSSL_HUB).rstrip("/")
    films: list[str] | None = None
    for split in ("train", "test"):
        lines, where = _ossl_split(root, split)
        if films is None:
            films = _ossl_films(root)
        for number, clip in lines:
            if not CLIP_ID.fullmatch(clip):
                yield Problem(
                    location=where,
                    origin=f"{where} line {number}",
                    reason=f"{where} line {number}: no clip id",
                )
                continue
            film = _film_of(clip, films)
            yield Candidate(
                location=f"{root}/{split}/video/{film}/{clip}.mp4",
                music=f"{root}/{split}/audio/{film}/{clip}.wav",
                origin=f"{where} line {number}",
                source_name="OSSL-v2",
                groups=(f"film:ossl:{film}",),
                kind="movie",
                split=split_name(split),
                licence="CC-BY-4.0",
            )


def _ossl_split(root: str, split: str) -> tuple[list[tuple[int, str]], str]:
    where = f"{root}/splits/{split}.txt"
    text = _read_text(where)
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()], where


def _ossl_films(root: str) -> list[str]:
    """The film ids of metadata.csv, longest first; empty where there is none, and the id is then split at
    its last `_`."""
    try:
        rows = list(csv.DictReader(_read_text(f"{root}/metadata.csv").splitlines()))
    except ValueError:
        return []
    return sorted({row["movie_id"] for row in rows if row.get("movie_id")}, key=len, reverse=True)


def _film_of(clip: str, films: list[str]) -> str:
    return next((film for film in films if clip.startswith(f"{film}_")), clip.rpartition("_")[0] or clip)


def _read_text(where: str) -> str:
    if "://" not in where:
        return _existing(Path(where)).read_text(encoding="utf-8-sig", errors="replace")
    from pipeline.offers.remote import open_store

    store, path = open_store(where)
    try:
        return str(store.cat_file(path).decode("utf-8-sig", errors="replace"))
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error}") from error


def _list_files(spec: str, *patterns: str) -> list[Path]:
    """The list itself, or the lists in a folder that match."""
    path = Path(spec).expanduser()
    found = sorted(p for pattern in patterns for p in path.glob(pattern)) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"{path}: no list in it; wants {' or '.join(patterns)}")
    return [_existing(p) for p in found]


def _list_file(spec: str, *patterns: str) -> Path:
    return _list_files(spec, *patterns)[0]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: no such list")
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _beside(path: Path, name: str) -> str | None:
    """The video of that name next to the list, or in the folder `videos` there."""
    for folder in (path.parent, path.parent / "videos"):
        for suffix in sorted(VIDEO_SUFFIXES):
            if (folder / f"{name}{suffix}").is_file():
                return str((folder / f"{name}{suffix}").resolve())
    return None


def _malformed(path: Path, number: int, line: str, wanted: str) -> Problem:
    origin = f"{path.name} line {number}"
    return Problem(location=str(path), origin=origin, reason=f"{origin}: {line[:80]!r} is not {wanted}")

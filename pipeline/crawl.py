"""`gvm-prep crawl-manifest`: videos -> the manifest's segments, and a reason for what was left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.jsonl import append_row, mend_journal, read_journal, read_rows, write_rows
from pipeline.manifest import Segment, Source, segment_key, shard_of, split_of, write_manifest
from pipeline.sources import (
    NO_PICTURE,
    NO_SOUND,
    VIDEO_SUFFIXES,
    LeftOut,
    Look,
    find_files,
    look_at_all,
    not_a_video,
)
from pipeline.splits import Groups

TOO_SHORT, DUPLICATE = "too short", "duplicate"


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """How sources are cut into segments, and dealt into splits and shards."""

    segment_s: int = 30  # the publication's
    stride_s: int = 30
    min_s: float = 5.0  # a 15-s video is kept whole; a shorter rest costs a sample more than it teaches
    num_shards: int = 100
    test_share: float = 0.15  # the publication's
    seed: int = 0
    published_splits: bool = False  # a list's own split, where it has one, instead of the seeded one

    def __post_init__(self) -> None:
        for name in ("segment_s", "stride_s", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.min_s <= self.segment_s:
            raise ValueError(
                f"min_s is {self.min_s}; it must be above 0 and at most segment_s, {self.segment_s}"
            )
        if not 0 <= self.test_share <= 1:
            raise ValueError(f"test_share is {self.test_share}; it must be between 0 and 1")


@dataclass
class Crawl:
    """What a crawl found."""

    segments: list[Segment] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    num_files: int = 0  # looked at
    num_read: int = 0  # of these, opened and hashed; the others were known

    def summary(self, out: Path) -> str:
        """What was kept and what was not, for a person."""
        sources = len({segment.source_sha256 for segment in self.segments})
        lines = [
            f"{out}: {len(self.segments)} segments of {sources} videos; "
            f"{self.num_read} files read, {self.num_files - self.num_read} unchanged since the last crawl"
        ]
        for split in ("train", "test"):
            durations_s = [segment.duration_s for segment in self.segments if segment.split == split]
            lines.append(f"  {split:<24}{len(durations_s):>8} segments  {sum(durations_s) / 3600:8.2f} h")
        if all(segment.split == "test" for segment in self.segments):
            lines.append("  nothing to train on: try another --seed, or --test-share 0")
        for reason, count in Counter(left_out.reason for left_out in self.left_out).most_common():
            lines.append(f"  left out, {reason:<14}{count:>8}")
        if self.left_out:
            lines.append(f"  each with its reason: {left_out_path(out)}")
        return "\n".join(lines)


def crawl(places: Sequence[Path], out: Path, config: CrawlConfig, append: bool = False) -> Crawl:
    """`crawl_files` on every video of local folders, files and patterns.

    Raises ValueError or FileNotFoundError where the places hold no video, or none that gives a segment.
    """
    paths, others = find_files(places)
    if not paths:
        raise ValueError(
            f"{', '.join(map(str, places))}: no video among {len(others)} files; "
            f"a video's name ends in {', '.join(VIDEO_SUFFIXES)}"
        )
    left_out = [not_a_video(path, out.parent) for path in others]
    return crawl_files({path: {} for path in paths}, left_out, out, config, append)


def crawl_files(
    about: Mapping[Path, dict[str, Any]],
    left_out: Iterable[LeftOut],
    out: Path,
    config: CrawlConfig,
    append: bool = False,
) -> Crawl:
    """Look at these files; write the manifest to `out` and what gave none to `left_out_path(out)`.

    about: what is known of each file, by its path. left_out: what was found to be no video before.
    append: keep the sources that `out` holds already, too.
    """
    known = {_name(look): look for look in _known(out)}
    result = Crawl(left_out=list(left_out), num_files=len(about))
    former = {name: look for name, look in known.items() if append and isinstance(look, Source)}
    looks = former | _look(about, out, known, result)
    _deal(looks.values(), config, result)
    _write(result, out)
    return result


def left_out_path(manifest: Path) -> Path:
    return manifest.with_suffix(".left-out.jsonl")


def _look(
    about: Mapping[Path, dict[str, Any]], out: Path, known: dict[str, Look], result: Crawl
) -> dict[str, Look]:
    """Look at the files; what was read is noted at once, so that a killed crawl goes on where it was."""
    looks: dict[str, Look] = {}
    mend_journal(_journal_path(out))
    with tqdm(total=len(about), desc="crawl", unit="file", disable=None) as progress:
        seen = look_at_all(about, out.parent, known)
        for (look, was_read), what in zip(seen, about.values(), strict=True):
            if was_read:
                result.num_read += 1
                append_row(_journal_path(out), look.to_json() if isinstance(look, LeftOut) else asdict(look))
            looks[_name(look)] = replace(look, about=what) if isinstance(look, Source) else look
            progress.update()
    return looks


def _known(out: Path) -> Iterator[Look]:
    """What earlier crawls, finished or killed, learnt by reading files."""
    for path in (left_out_path(out), out):
        for row in read_rows(path) if path.is_file() else ():
            yield from _look_of(row)
    for row in read_journal(_journal_path(out)):
        yield from _look_of(row)


def _look_of(row: dict[str, Any]) -> Iterator[Look]:
    """What a row of the manifest, of what was left out or of the journal says of its source."""
    source = Source(**{f.name: row[f.name] for f in fields(Source) if f.name in row})
    if row.get("reason") in (NO_PICTURE, NO_SOUND):
        yield LeftOut(source=source, reason=row["reason"], message=row["message"])
    elif source.source_sha256:
        yield source


def _deal(looks: Collection[Look], config: CrawlConfig, result: Crawl) -> None:
    """Cut every source into segments; content that came before is left out."""
    groups = _groups(looks, config)
    first: dict[str, Source] = {}
    for look in looks:
        if isinstance(look, LeftOut):
            result.left_out.append(look)
        elif (twin := first.setdefault(look.source_sha256, look)) is not look:
            message = f"the same content as {twin.source}"
            result.left_out.append(LeftOut(source=look, reason=DUPLICATE, message=message))
        else:
            for piece in cut(look, config):
                if isinstance(piece, LeftOut):
                    result.left_out.append(piece)
                else:
                    result.segments.append(_segment(piece, groups, config))


def _groups(looks: Iterable[Look], config: CrawlConfig) -> Groups:
    """What belongs together: a source's segments, and sources of one song, dance or film."""
    groups = Groups(lambda group: split_of(group, config.test_share, config.seed))
    for look in looks:
        if isinstance(look, Source):
            content = look.source_sha256[:16]
            groups.join([content, *look.about.get("groups", ())])
            if config.published_splits and "split" in look.about:
                groups.fix(content, look.about["split"])
    return groups


@dataclass(frozen=True)
class Piece:
    """An excerpt of a source."""

    source: Source
    start_s: int
    duration_s: float


def cut(source: Source, config: CrawlConfig) -> Iterator[Piece | LeftOut]:
    """The source's pieces, and those too short to be segments. Where a list names excerpts, only those
    are cut."""
    for start_s, end_s in source.about.get("excerpts") or [(0.0, None)]:
        stop_s = source.source_duration_s if end_s is None else min(end_s, source.source_duration_s)
        yield from _cut_excerpt(source, math.ceil(start_s), stop_s, config)


def _cut_excerpt(
    source: Source, begin_s: int, end_s: float, config: CrawlConfig
) -> Iterator[Piece | LeftOut]:
    for start_s in range(begin_s, max(begin_s + 1, int(end_s)), config.stride_s):
        duration_s = max(0.0, round(min(config.segment_s, end_s - start_s), 3))
        if duration_s < config.min_s:
            message = f"{duration_s:g} s from {start_s} s on; --min-s is {config.min_s:g}"
            yield LeftOut(
                source=source, reason=TOO_SHORT, message=message, start_s=start_s, duration_s=duration_s
            )
        else:
            yield Piece(source, start_s, duration_s)
        if start_s + config.segment_s >= end_s:
            return


def _segment(piece: Piece, groups: Groups, config: CrawlConfig) -> Segment:
    source = piece.source
    key = segment_key(source.source_sha256, piece.start_s, piece.duration_s)
    group = groups.group(source.source_sha256[:16])
    return Segment(
        **{f.name: getattr(source, f.name) for f in fields(Source)},
        key=key,
        start_s=piece.start_s,
        duration_s=piece.duration_s,
        group=group,
        split=groups.split(group),
        shard=shard_of(key, config.num_shards),
    )


def _write(result: Crawl, out: Path) -> None:
    write_rows(left_out_path(out), (left_out.to_json() for left_out in result.left_out))
    if not result.segments:
        raise ValueError(
            f"none of {result.num_files} files gives a segment; the reasons are in {left_out_path(out)}"
        )
    write_manifest(out, result.segments)
    _journal_path(out).unlink(missing_ok=True)


def _journal_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.crawling")


def _name(look: Look) -> str:
    return look.source.source if isinstance(look, LeftOut) else look.source

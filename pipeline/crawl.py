"""`gvm-prep crawl-manifest`: videos -> the manifest's segments, and a reason for what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.jsonl import append_row, read_journal, read_rows, write_rows
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
    """Look at every video of `places`; write the manifest to `out` and the rest to `left_out_path(out)`.

    append: keep the sources that `out` holds already, too.
    Raises ValueError or FileNotFoundError where the places hold no video, or none that gives a segment.
    """
    paths, others = find_files(places)
    if not paths:
        raise ValueError(
            f"{', '.join(map(str, places))}: no video among {len(others)} files; "
            f"a video's name ends in {', '.join(VIDEO_SUFFIXES)}"
        )
    known = {_name(look): look for look in _known(out)}
    result = Crawl(left_out=[not_a_video(path, out.parent) for path in others], num_files=len(paths))
    former = {name: look for name, look in known.items() if append and isinstance(look, Source)}
    _deal((former | _look(paths, out, known, result)).values(), config, result)
    _write(result, out)
    return result


def left_out_path(manifest: Path) -> Path:
    return manifest.with_suffix(".left-out.jsonl")


def _look(paths: Sequence[Path], out: Path, known: dict[str, Look], result: Crawl) -> dict[str, Look]:
    """Look at the files; what was read is noted at once, so that a killed crawl goes on where it was."""
    looks = {}
    with tqdm(total=len(paths), desc="crawl", unit="file", disable=None) as progress:
        for look, was_read in look_at_all(paths, out.parent, known):
            looks[_name(look)] = look
            if was_read:
                result.num_read += 1
                append_row(_journal_path(out), look.to_json() if isinstance(look, LeftOut) else asdict(look))
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
    source = Source(**{f.name: row[f.name] for f in fields(Source)})
    if row.get("reason") in (NO_PICTURE, NO_SOUND):
        yield LeftOut(source=source, reason=row["reason"], message=row["message"])
    elif source.source_sha256:
        yield source


def _deal(looks: Iterable[Look], config: CrawlConfig, result: Crawl) -> None:
    """Cut every source into segments; content that came before is left out."""
    first: dict[str, Source] = {}
    for look in looks:
        if isinstance(look, LeftOut):
            result.left_out.append(look)
        elif (twin := first.setdefault(look.source_sha256, look)) is not look:
            message = f"the same content as {twin.source}"
            result.left_out.append(LeftOut(source=look, reason=DUPLICATE, message=message))
        else:
            for piece in cut(look, config):
                if isinstance(piece, Segment):
                    result.segments.append(piece)
                else:
                    result.left_out.append(piece)


def cut(source: Source, config: CrawlConfig) -> Iterator[Segment | LeftOut]:
    """The source's segments, and the piece at its end that is too short to be one."""
    total_s = source.source_duration_s
    for start_s in range(0, max(1, int(total_s)), config.stride_s):
        duration_s = round(min(config.segment_s, total_s - start_s), 3)
        if duration_s < config.min_s:
            message = f"{duration_s:g} s from {start_s} s on; --min-s is {config.min_s:g}"
            yield LeftOut(
                source=source, reason=TOO_SHORT, message=message, start_s=start_s, duration_s=duration_s
            )
        else:
            yield _segment(source, start_s, duration_s, config)
        if start_s + config.segment_s >= total_s:
            return


def _segment(source: Source, start_s: int, duration_s: float, config: CrawlConfig) -> Segment:
    key = segment_key(source.source_sha256, start_s, duration_s)
    group = source.source_sha256[:16]
    return Segment(
        **asdict(source),
        key=key,
        start_s=start_s,
        duration_s=duration_s,
        group=group,
        split=split_of(group, config.test_share, config.seed),
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

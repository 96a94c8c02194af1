"""`gvm-prep crawl-manifest`: videos -> the manifest's segments, and a reason for what was left out.

Rows stream from the sources into the book (`sourcebook.py`), and from the book into the manifest, by content:
however many there are, only the names of groups are held in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from pipeline.cutting import CrawlConfig, Piece, cut
from pipeline.download import Access
from pipeline.fetch import Fetcher
from pipeline.filtering import UNDECIDED, thresholds_in_force
from pipeline.gather import gather
from pipeline.jsonl import write_rows
from pipeline.manifest import Segment, Source, segment_key, shard_of, split_of, write_manifest
from pipeline.offers.read import read_offers, read_sources_file, refuse_missing
from pipeline.sourcebook import SourceBook, source_book
from pipeline.sources import LeftOut, look_at_all
from pipeline.splits import Groups

DUPLICATE = "duplicate"
SOURCES_NAME = "sources.txt"


@dataclass
class Crawl:
    """What a crawl found."""

    num_files: int = 0  # looked at
    num_read: int = 0  # of these, opened and hashed; the others were known
    num_sources: int = 0  # that give segments
    num_segments: Counter[str] = field(default_factory=Counter)  # by split
    duration_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by split
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    def add(self, segment: Segment) -> None:
        self.num_segments[segment.split] += 1
        self.duration_s[segment.split] += segment.duration_s

    def summary(self, out: Path) -> str:
        """What was kept and what was not, for a person."""
        lines = [
            f"{out}: {self.num_segments.total()} segments of {self.num_sources} videos; "
            f"{self.num_read} files read, {self.num_files - self.num_read} unchanged since the last crawl"
        ]
        for split in ("train", "test"):
            hours = self.duration_s[split] / 3600
            lines.append(f"  {split:<24}{self.num_segments[split]:>8} segments  {hours:8.2f} h")
        if not self.num_segments["train"]:
            lines.append("  nothing to train on: try another --seed, or --test-share 0")
        elif not self.num_segments["test"]:
            lines.append("  nothing to validate on, so training will know no best: try another --seed")
        for reason, count in self.left_out.most_common():
            lines.append(f"  left out, {reason:<14}{count:>8}")
        if self.left_out:
            lines.append(f"  each with its reason: {left_out_path(out)}")
        return "\n".join(lines)


def crawl(
    specs: Sequence[str | Path],
    out: Path,
    config: CrawlConfig,
    append: bool = False,
    access: Access | None = None,
) -> Crawl:
    """Crawl sources of every kind, named or in sources.txt beside the manifest, into the manifest `out`.

    What gave no segment goes into `left_out_path(out)`. append: keep the sources that `out` holds, too.
    Raises FileNotFoundError where a named local source is not there, ValueError where nothing gives a
    segment.
    """
    access = access or Access()
    refuse_missing(map(str, specs), access)
    with source_book(out) as book:
        book.learn(left_out_path(out), append=False)
        book.learn(out, append)
        offers = read_offers(map(str, specs), access)
        if (sources_file := out.parent / SOURCES_NAME).is_file():
            offers = chain(offers, read_sources_file(sources_file, access))
        gather(offers, Fetcher(out.parent / "fetched", access), book, out.parent)
        if not book.num_to_look_at():
            raise ValueError(_nothing_found(specs, book))
        result = _look(book, out.parent)
        _write(book, out, config, result)
    return result


def left_out_path(manifest: Path) -> Path:
    return manifest.with_suffix(".left-out.jsonl")


def _nothing_found(specs: Sequence[str | Path], book: SourceBook) -> str:
    problems = [row["message"] for row in book.left_out()]
    named = ", ".join(map(str, specs)) or SOURCES_NAME
    if not problems:
        return f"{named}: no video there, and nothing else"
    return f"{named}: no video there; {len(problems)} problems, the first: {problems[0]}"


def _look(book: SourceBook, folder: Path) -> Crawl:
    """Look at the wanted files; what was read is noted at once: a killed crawl goes on where it was."""
    result = Crawl(num_files=book.num_to_look_at())
    with tqdm(total=result.num_files, desc="crawl", unit="file", disable=None) as progress:
        for look, was_read in look_at_all(book.to_look_at(), folder):
            if was_read:
                result.num_read += 1
                book.note(look)
            progress.update()
    return result


def _write(book: SourceBook, out: Path, config: CrawlConfig, result: Crawl) -> None:
    """The manifest, where there is anything to write, and what was left out.

    Where thresholds are in force, no row is in before they were applied: a kill may come between.
    """
    segments = _deal(book, config, result)
    if thresholds_in_force(out):
        segments = (replace(segment, dropped=UNDECIDED) for segment in segments)
    first = list(islice(segments, 1))
    if not first and out.exists():
        reason = next(row["message"] for row in book.left_out())
        raise ValueError(f"none of {result.num_files} files gives a segment: {reason}; {out} stays as it was")
    if first:
        write_manifest(out, chain(first, segments))
    write_rows(left_out_path(out), book.left_out())
    result.left_out.update(row["reason"] for row in book.left_out())
    if not first:
        raise ValueError(
            f"none of {result.num_files} files gives a segment; the reasons are in {left_out_path(out)}"
        )


def _deal(book: SourceBook, config: CrawlConfig, result: Crawl) -> Iterator[Segment]:
    """Cut every source into segments, by key; content that came before is left out."""
    groups = _groups(book, config)
    before: Source | None = None
    for look in book.looks():
        if isinstance(look, LeftOut):
            book.leave_out(look)
        elif before and before.source_sha256 == look.source_sha256:
            message = f"the same content as {before.source}"
            book.leave_out(LeftOut(source=look, reason=DUPLICATE, message=message))
        else:
            before = look
            yield from _segments_of(look, groups, book, config, result)


def _segments_of(
    source: Source, groups: Groups, book: SourceBook, config: CrawlConfig, result: Crawl
) -> Iterator[Segment]:
    segments = []
    for piece in cut(source, config):
        if isinstance(piece, LeftOut):
            book.leave_out(piece)
        else:
            segments.append(_segment(source, piece, groups, config))
    result.num_sources += bool(segments)
    for segment in sorted(segments, key=lambda segment: segment.key):
        result.add(segment)
        yield segment


def _groups(book: SourceBook, config: CrawlConfig) -> Groups:
    """What belongs together: a source's segments, and sources of one song, dance or film."""
    groups = Groups(lambda group: split_of(group, config.test_share, config.seed))
    for sha256, about in book.contents():
        groups.join([sha256[:16], *about.get("groups", ())])
        if config.published_splits and "split" in about:
            groups.fix(sha256[:16], about["split"])
    return groups


def _segment(source: Source, piece: Piece, groups: Groups, config: CrawlConfig) -> Segment:
    key = segment_key(source.source_sha256, piece.start_s, piece.duration_s)
    group = groups.group(source.source_sha256[:16])
    return Segment(
        **source.to_json(),
        key=key,
        start_s=piece.start_s,
        duration_s=piece.duration_s,
        group=group,
        split=groups.split(group),
        shard=shard_of(key, config.num_shards),
    )

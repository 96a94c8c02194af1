"""From sources of every kind to video files on disk, with what is known about each of them.

`about`, a row's field: origin, source_name, groups, kind, style, licence, terms, split (as published),
location (the URL),
metadata (a whitelist that names no person), excerpts ([start_s, end_s], where a list names parts of a video).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.crawl import Crawl, CrawlConfig, crawl_files
from pipeline.fetch import Fetched, Fetcher
from pipeline.offers.candidate import Offer, Problem
from pipeline.offers.read import Access, read_offers, read_sources_file
from pipeline.sources import LeftOut, absolute, unseen

SOURCES_NAME = "sources.txt"
LABELS = ("origin", "source_name", "kind", "style", "licence", "terms", "split")


@dataclass
class Gathered:
    """What the sources gave."""

    about: dict[Path, dict[str, Any]] = field(default_factory=dict)  # by file, absolute
    problems: list[Problem] = field(default_factory=list)


def crawl_sources(
    specs: Sequence[str], out: Path, config: CrawlConfig, access: Access, append: bool
) -> Crawl:
    """Gather from sources of every kind, named or in sources.txt beside the manifest, and crawl it all.

    Raises FileNotFoundError where a named local source is not there, ValueError where nothing gives a
    segment.
    """
    sources_file = out.parent / SOURCES_NAME
    offers = _offers(specs, sources_file if sources_file.is_file() else None, access)
    gathered = gather(offers, Fetcher(out.parent / "fetched", access))
    if not gathered.about:
        raise ValueError(_nothing_found(specs, gathered.problems))
    return crawl_files(gathered.about, map(left_out_of, gathered.problems), out, config, append)


def _nothing_found(specs: Sequence[str], problems: Sequence[Problem]) -> str:
    first = problems[0].reason if problems else "they are empty"
    return f"{', '.join(specs) or SOURCES_NAME}: no video there; {len(problems)} problems, the first: {first}"


def gather(offers: Iterable[Offer], fetcher: Fetcher) -> Gathered:
    """Fetch what is not on disk. What cannot be used is a problem, never the end."""
    gathered = Gathered()
    with tqdm(desc="gather", unit="video", disable=None) as progress:
        for result in fetcher.fetch_all(offers):
            if isinstance(result, Problem):
                gathered.problems.append(result)
            else:
                _merge(gathered.about, result)
            progress.update()
    gathered.about = {path: _without_wholes(gathered.about[path]) for path in sorted(gathered.about)}
    return gathered


def _offers(specs: Sequence[str], sources_file: Path | None, access: Access) -> Iterator[Offer]:
    yield from read_offers(specs, access)
    if sources_file is not None:
        yield from read_sources_file(sources_file, access)


def _merge(about: dict[Path, dict[str, Any]], fetched: Fetched) -> None:
    """A video that several rows name is one video: groups and excerpts add up, the first label stays."""
    path = absolute(fetched.path)
    values = about.setdefault(path, {})
    candidate = fetched.candidate
    for name in LABELS:
        if (value := getattr(candidate, name)) is not None:
            values.setdefault(name, value)
    if "://" in candidate.location:
        values.setdefault("location", candidate.location)
    if fetched.metadata:
        values.setdefault("metadata", fetched.metadata)
    if candidate.groups:
        values["groups"] = sorted({*values.get("groups", ()), *candidate.groups})
    excerpt = [candidate.start_s, candidate.end_s]
    if excerpt not in values.setdefault("excerpts", []):
        values["excerpts"].append(excerpt)


def _without_wholes(about: dict[str, Any]) -> dict[str, Any]:
    """Without excerpts where one row wants the whole video."""
    return {k: v for k, v in about.items() if k != "excerpts" or [0.0, None] not in v}


def left_out_of(problem: Problem) -> LeftOut:
    """The problem as a row beside the manifest."""
    return LeftOut(source=unseen(problem.location), reason=problem.status, message=problem.reason)

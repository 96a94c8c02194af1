"""From offers of every kind to video files on disk, with what is known about each of them.

`about`, a row's field: origin, source_name, groups, kind, style, licence, terms, split (as published),
location (the URL), metadata (a whitelist that names no person), excerpts ([start_s, end_s], where a list
names parts of a video).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.fetch import Fetched, Fetcher
from pipeline.offers.candidate import Offer, Problem
from pipeline.sourcebook import SourceBook
from pipeline.sources import LeftOut, source_name, unseen

LABELS = ("origin", "source_name", "kind", "style", "licence", "terms", "split")
WHOLE = (0.0, None)  # an excerpt that is the whole video


def gather(offers: Iterable[Offer], fetcher: Fetcher, book: SourceBook, folder: Path) -> None:
    """Fetch what is not on disk, and note it all in the book. What cannot be used is a row, never the end.

    folder: where the manifest lies.
    """
    with tqdm(desc="gather", unit="video", disable=None) as progress:
        for result in fetcher.fetch_all(offers):
            if isinstance(result, Problem):
                book.leave_out(left_out_of(result))
            else:
                name = source_name(result.path, folder)
                book.want(name, _merged(book.about(name), result))
            progress.update()


def _merged(about: dict[str, Any], fetched: Fetched) -> dict[str, Any]:
    """A video that several rows name is one video: groups and excerpts add up, the first label stays."""
    candidate = fetched.candidate
    labels = {name: value for name in LABELS if (value := getattr(candidate, name)) is not None}
    if "://" in candidate.location:
        labels["location"] = candidate.location
    if fetched.metadata:
        labels["metadata"] = fetched.metadata
    merged = labels | about
    if candidate.groups:
        merged["groups"] = sorted({*about.get("groups", ()), *candidate.groups})
    excerpts = _excerpts(about, (candidate.start_s, candidate.end_s))
    return {**merged, "excerpts": excerpts} if excerpts else _without_excerpts(merged)


def _excerpts(about: dict[str, Any], excerpt: tuple[float, float | None]) -> list[tuple[float, float | None]]:
    """What rows want of a video, in order; empty where one wants it whole."""
    before = [tuple(one) for one in about.get("excerpts", ())]
    if excerpt == WHOLE or (about and not before):
        return []
    return sorted({*before, excerpt}, key=lambda one: (one[0], one[1] or math.inf))


def _without_excerpts(about: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name != "excerpts"}


def left_out_of(problem: Problem) -> LeftOut:
    """The problem as a row beside the manifest."""
    return LeftOut(source=unseen(problem.location), reason=problem.status, message=problem.reason)

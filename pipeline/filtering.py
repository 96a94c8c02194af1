"""`gvm-prep filter`: score segments, then decide by thresholds which stay. Deciding again costs nothing.

data/scores.jsonl   what was measured, one row a segment; kept for ever
data/filter.json    the thresholds in force; a later crawl applies them to its rows, too
data/manifest.jsonl every segment with its scores; `dropped` says why one is out, None that it is in
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.filters.duplicates import Print, duplicates
from pipeline.filters.keep import AllOf, names, parse_keep
from pipeline.folder import DataFolder
from pipeline.jsonl import read_rows, read_some_rows, to_line, write_rows
from pipeline.manifest import Split
from pipeline.parallel import bounded_map
from pipeline.plan import read_plan
from pipeline.scorebook import SCORES_NAME, ScoreBook, Version
from pipeline.sources import sha256_of
from pipeline.splits import Groups

# What a person would keep for learning music from a picture; each comparison counts where it was measured.
DEFAULT_KEEP = (
    "unreadable == 0 and (speech < 0.3 or singing > 0.3) and music > 0.5 and text < 0.035 and silence < 0.5 "
    "and loudness > -50 and clipping < 0.02 and black < 0.5 and static < 0.9 and duplicate == 0"
)
LONG = ("sound_print", "picture_print", "speech_over_time")  # stay in the journal, out of the manifest
FILTER_NAME = "filter.json"
UNDECIDED = "undecided: the thresholds in force are not applied yet. Run: gvm-prep filter --score none"
TORN = "group: its music is in both splits of finished shards"
LABELS = ("kind", "style", "licence", "source_name")  # of a row's `about`; thresholds may ask for them


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What to measure, and what to keep."""

    score: str = "all"  # all, none, or names joined by commas
    keep: str | None = None  # None: what is in force, else DEFAULT_KEEP
    tagger: Path | None = None
    num_threads: int = 2

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise ValueError(f"threads is {self.num_threads}; it must be at least 1")


@dataclass
class Decision:
    """What thresholds kept and dropped."""

    kept: int = 0
    kept_s: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)  # by the score that dropped it
    unscored: int = 0

    def summary(self, keep: str) -> str:
        lines = [f"keep: {keep}", f"  kept{self.kept:>28} segments  {self.kept_s / 3600:8.2f} h"]
        lines += [f"  dropped by {name:<13}{count:>8} segments" for name, count in self.dropped.most_common()]
        if self.unscored:
            lines.append(f"  not scored yet{self.unscored:>18} segments. Run: gvm-prep filter")
        return "\n".join(lines)


@dataclass(frozen=True)
class Filtered:
    """What a run of filters came to."""

    missing: list[str]  # a line for each filter that was wanted and cannot run
    num_measured: int
    decision: str  # for a person
    failed: list[str]  # why segments could not be measured this time; the next run tries again

    def summary(self) -> str:
        lines = [*self.missing, f"{self.num_measured} segments measured", self.decision]
        if self.failed:
            count = len(self.failed)
            lines.append(f"  not measured this time{count:>10} segments. Run again; {self.failed[0]}")
        return "\n".join(lines)


def filter_manifest(data: DataFolder, config: FilterConfig) -> Filtered:
    """Measure what is not measured yet, decide, write the manifest.

    Raises FileNotFoundError where there is no manifest, ValueError for an unknown filter or expression.
    """
    if not data.manifest.is_file():
        raise FileNotFoundError(f"{data.manifest}: no manifest there. Run: gvm-prep crawl-manifest FOLDER")
    keep = config.keep or keep_in_force(data) or DEFAULT_KEEP
    if keep == "default":
        keep = DEFAULT_KEEP
    parse_keep(keep)  # before hours of measuring
    filters, missing = _chosen_filters(config)
    num_measured, failed = score_all(data, filters, config.tagger, config.num_threads)
    decision = apply_keep(data, keep, asked=config.keep is not None)
    return Filtered(missing, num_measured, decision.summary(keep), failed)


def _chosen_filters(config: FilterConfig) -> tuple[list[str], list[str]]:
    """(filters to run, one line for each that was wanted and cannot run)."""
    from pipeline.filters.score import FILTERS, usable_filters

    wanted = {"all": list(FILTERS), "none": []}.get(config.score, config.score.split(","))
    unknown = sorted(set(wanted) - set(FILTERS))
    if unknown:
        raise ValueError(f"--score: {', '.join(unknown)} is unknown; known: all, none, {', '.join(FILTERS)}")
    usable, missing = usable_filters(config.tagger)
    return [name for name in wanted if name in usable], [missing[n] for n in wanted if n in missing]


def decide_again(manifest: Path) -> str | None:
    """The thresholds in force, applied to a manifest that was crawled anew; None where none are."""
    keep = thresholds_in_force(manifest)
    return apply_keep(DataFolder(manifest.parent), keep, asked=False).summary(keep) if keep else None


def thresholds_in_force(manifest: Path) -> str | None:
    data = DataFolder(manifest.parent)
    return keep_in_force(data) if manifest == data.manifest else None


def score_all(
    data: DataFolder, filters: Collection[str], tagger: Path | None, num_threads: int
) -> tuple[int, list[str]]:
    """Measure every segment that lacks one of these filters: how many, and why others could not be now."""
    book = ScoreBook(data.root / SCORES_NAME)
    versions = _versions(filters, tagger)
    todo = _lacking(data, book, versions)
    failed = []
    with tqdm(total=len(todo), desc="filter", unit="segment", disable=None) as progress:
        for key, scores in _measure(data, todo, tagger, num_threads):
            if isinstance(scores, Exception):
                failed.append(str(scores))
            else:
                was_unreadable = book.scores(key).get("unreadable", 0.0)
                measured = {"unreadable": 0.0} | scores if was_unreadable else scores
                book.add(key, measured, {name: versions[name] for name in todo[key]})
            progress.update()
    return len(todo) - len(failed), failed


def _versions(filters: Collection[str], tagger: Path | None) -> dict[str, Version]:
    """What a score has to be of, by filter; another tagger is another version."""
    from pipeline.filters.score import FILTERS

    versions: dict[str, Version] = {name: FILTERS[name].version for name in filters}
    if tagger is not None and "tags" in versions:
        digest = hashlib.sha256()
        for path in sorted(path for path in tagger.glob("*") if path.is_file()):
            digest.update(sha256_of(path).encode())
        versions["tags"] = f"{versions['tags']} {digest.hexdigest()[:16]}"
    return versions


def _lacking(data: DataFolder, book: ScoreBook, versions: Mapping[str, Version]) -> dict[str, list[str]]:
    """The filters that each segment lacks, or has of another version."""
    todo = {}
    for row in read_rows(data.manifest):
        measured = book.filters(row["key"])
        lacking = [name for name, version in versions.items() if measured.get(name) != version]
        if lacking:
            todo[row["key"]] = lacking
    return todo


def _measure(
    data: DataFolder, todo: dict[str, list[str]], tagger: Path | None, num_threads: int
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """(key, scores) of each segment, as they come; a few are under way at a time.

    In place of scores an error where the file is not there, or its disk does not answer: that may pass.
    """
    from gvmgen.encoders.process import MediaError, MediaTimeoutError
    from pipeline.filters.score import Excerpt, score

    def one(row: dict[str, Any]) -> tuple[str, dict[str, Any] | Exception]:
        path = data.root / row["source"]
        scores: dict[str, Any] | Exception
        try:
            path.open("rb").close()
            scores = score(Excerpt(path, row["start_s"], row["duration_s"], tagger), todo[row["key"]])
        except (OSError, MediaTimeoutError) as error:
            scores = error
        except MediaError as error:
            scores = {"unreadable": 1.0, "error": str(error)}
        return row["key"], scores

    rows = (row for row in read_rows(data.manifest) if row["key"] in todo)
    yield from bounded_map(one, rows, num_threads)


@dataclass
class _Comparison:
    """What only the set as a whole tells."""

    groups: Groups  # rows joined by content, by the lists' names and by music
    twins: dict[int, str]  # number of a row whose segment comes again -> key of the better one
    has_scores: set[str]  # names of all scores that some row has


def apply_keep(data: DataFolder, keep: str, asked: bool = True) -> Decision:
    """Write the manifest anew: scores, why a row is dropped, and splits that no duplicate crosses.

    asked: somebody asks for `keep` now; thresholds that are in force may ask for what no row has yet.
    Raises ValueError where `keep` is no expression, or asked for what no row has.
    """
    term = parse_keep(keep)
    book = ScoreBook(data.root / SCORES_NAME)
    comparison = _compare(data, book)
    if asked and keep != DEFAULT_KEEP:
        _refuse_unknown(names(term), comparison.has_scores)
    decision = Decision()
    write_rows(data.manifest, _decided(data, book, term, comparison, decision))
    (data.root / FILTER_NAME).write_text(to_line({"keep": keep}))
    return decision


def keep_in_force(data: DataFolder) -> str | None:
    """The expression that `apply_keep` used last; None where it never ran."""
    path = data.root / FILTER_NAME
    return json.loads(path.read_text())["keep"] if path.is_file() else None


def _compare(data: DataFolder, book: ScoreBook) -> _Comparison:
    test_groups: set[str] = set()  # by the crawl; a group that joins another takes its split
    groups = Groups(lambda group: "test" if group in test_groups else "train")
    contents = array("Q")  # first 64 bits of the sources' hashes
    sizes = array("Q")
    has_scores: set[str] = set()

    def prints() -> Iterator[Print]:
        for row in read_rows(data.manifest):
            scores = book.scores(row["key"])
            has_scores.update(scores)
            groups.join(row_names(row))
            if row["split"] == "test":
                test_groups.add(row["group"])
            contents.append(int(content_name(row), 16))
            sizes.append(row["source_size"])
            sound, picture = scores.get("sound_print", ""), scores.get("picture_print", "")
            yield Print(contents[-1], row["duration_s"], sound, picture)

    better: dict[int, int] = {}
    for match in duplicates(prints()):
        groups.join(f"{contents[row]:016x}" for row in (match.first, match.second))
        if match.same_picture:
            best, other = sorted((match.first, match.second), key=lambda row: (-sizes[row], row))
            better.setdefault(other, best)
    chosen = read_some_rows(data.manifest, set(better.values()))
    return _Comparison(groups, {row: chosen[best]["key"] for row, best in better.items()}, has_scores)


def _refuse_unknown(asked: set[str], has_scores: set[str]) -> None:
    unknown = asked - has_scores - set(LABELS) - {"duration_s", "duplicate", "unreadable"}
    if unknown:
        raise ValueError(
            f"--keep asks for {', '.join(sorted(unknown))}, which no segment has; known: "
            f"{', '.join([*sorted(has_scores - set(LONG)), *LABELS])}"
        )


def _decided(
    data: DataFolder, book: ScoreBook, term: AllOf, comparison: _Comparison, decision: Decision
) -> Iterator[dict[str, Any]]:
    """The manifest's rows with scores, group, split and verdict."""
    groups, finished = comparison.groups, _finished(data)
    for content, split in finished.values():
        groups.fix(content, split)
    for number, row in enumerate(read_rows(data.manifest)):
        scores = book.scores(row["key"])
        group = groups.group(content_name(row))
        row["group"] = group
        row["split"] = finished[row["key"]][1] if row["key"] in finished else groups.split(group)
        torn = TORN if groups.is_torn(group) and row["key"] not in finished else None
        twin = comparison.twins.get(number)
        row["scores"] = {name: value for name, value in scores.items() if name not in LONG}
        row["dropped"] = _reason(row, scores, term, twin) or torn
        _count(decision, row, scores)
        yield row


def _finished(data: DataFolder) -> dict[str, tuple[str, Split]]:
    """(content, split) by key of the segments in finished shards; their split stays as it is."""
    return {
        segment["key"]: (content_name(segment), segment["split"])
        for shard in read_plan(data.plan).values()
        if data.record(shard.shard) is not None
        for segment in shard.segments
    }


def _reason(row: dict[str, Any], scores: dict[str, Any], term: AllOf, twin: str | None) -> str | None:
    """Why the thresholds drop a row, or None."""
    labels = {name: row.get("about", {}).get(name) for name in LABELS}
    values = labels | {"duration_s": row["duration_s"]} | scores | {"duplicate": 1.0 if twin else 0.0}
    reason = term.reason(values)
    if reason and reason.startswith("duplicate "):
        return f"duplicate of {twin}"
    if reason and reason.startswith("unreadable "):
        return f"unreadable: {scores['error']}"
    return reason


def _count(decision: Decision, row: dict[str, Any], scores: dict[str, Any]) -> None:
    decision.unscored += not scores
    if row["dropped"] is None:
        decision.kept += 1
        decision.kept_s += row["duration_s"]
    else:
        decision.dropped[row["dropped"].split()[0].rstrip(":,")] += 1


def content_name(row: Mapping[str, Any]) -> str:
    """The name by which a source's segments belong together, whatever lists say of them."""
    return str(row["source_sha256"][:16])


def row_names(row: dict[str, Any]) -> list[str]:
    """All names of what a row must not be torn from."""
    return [content_name(row), *row.get("about", {}).get("groups", ())]

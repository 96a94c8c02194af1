"""`gvm-prep report`: what a data set holds, as one page without any outside part, and as JSON."""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.crawl import left_out_path
from pipeline.filtering import keep_in_force
from pipeline.folder import DataFolder
from pipeline.jsonl import read_rows
from pipeline.page import page

NUM_BINS = 30
UNKNOWN = "not labelled"


@dataclass
class Hours:
    """Seconds and segments under one name."""

    kept_s: float = 0.0
    dropped_s: float = 0.0
    segments: int = 0

    def add(self, row: dict[str, Any]) -> None:
        self.segments += 1
        if row.get("dropped") is None:
            self.kept_s += row["duration_s"]
        else:
            self.dropped_s += row["duration_s"]

    def to_json(self) -> dict[str, float]:
        return {
            "kept_h": round(self.kept_s / 3600, 4),
            "dropped_h": round(self.dropped_s / 3600, 4),
            "segments": self.segments,
        }


@dataclass
class Survey:
    """What one pass over the manifest gathers; a few bytes a row, whatever their number."""

    by: dict[str, defaultdict[str, Hours]] = field(
        default_factory=lambda: {
            name: defaultdict(Hours) for name in ("source", "kind", "style", "split", "licence")
        }
    )
    table: Counter[tuple[str, str]] = field(default_factory=Counter)  # kept seconds by kind and style
    values: defaultdict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("f")))
    reasons: Counter[str] = field(default_factory=Counter)
    total: Hours = field(default_factory=Hours)

    def add(self, row: dict[str, Any]) -> None:
        about = row.get("about", {})
        kind, style = about.get("kind") or UNKNOWN, about.get("style") or UNKNOWN
        labels = {
            "source": about.get("source_name") or UNKNOWN,
            "kind": kind,
            "style": style,
            "split": row["split"],
            "licence": about.get("licence") or "not stated",
        }
        self.total.add(row)
        for name, label in labels.items():
            self.by[name][label].add(row)
        self.values["duration_s"].append(row["duration_s"])
        for name, value in row.get("scores", {}).items():
            if isinstance(value, int | float):
                self.values[name].append(value)
        if row.get("dropped") is None:
            self.table[kind, style] += row["duration_s"]
        else:
            self.reasons[reason_kind(row["dropped"])] += 1


def write_report(data: DataFolder, out: Path, num_samples: int) -> str:
    """Write the page to `out` and its numbers beside it. Returns one line for a person.

    Raises FileNotFoundError where there is no manifest, ValueError where both would have one name.
    """
    from pipeline.samples import picture_of  # loads PyAV

    if not data.manifest.is_file():
        raise FileNotFoundError(f"{data.manifest}: no manifest there. Run: gvm-prep crawl-manifest FOLDER")
    if out.suffix == ".json":
        raise ValueError(f"--out {out}: the numbers get that name; name the page: {out.with_suffix('.html')}")
    survey = Survey()
    for row in read_rows(data.manifest):
        survey.add(row)
    numbers = summarise(survey, data)
    samples = [(row, picture_of(row, data.root)) for row in _sample(data, num_samples)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(
        json.dumps(numbers, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    out.write_text(page(numbers, samples), encoding="utf-8")
    hours = numbers["total"]["kept_h"]
    numbers_path = out.with_suffix(".json")
    return f"{out}: {survey.total.segments} segments, {hours:.2f} h kept; the numbers: {numbers_path}"


def summarise(survey: Survey, data: DataFolder) -> dict[str, Any]:
    """All numbers of the page, as plain JSON."""
    left_out = left_out_path(data.manifest)
    reasons = Counter(row["reason"] for row in read_rows(left_out)) if left_out.is_file() else Counter[str]()
    return {
        "total": survey.total.to_json(),
        "keep": keep_in_force(data),
        "hours": {
            name: {k: hours.to_json() for k, hours in sorted(by.items())} for name, by in survey.by.items()
        },
        "table": [
            {"kind": kind, "style": style, "hours": round(seconds / 3600, 4)}
            for (kind, style), seconds in sorted(survey.table.items())
        ],
        "histograms": {name: histogram(np.asarray(values)) for name, values in sorted(survey.values.items())},
        "dropped": dict(survey.reasons.most_common()),
        "left_out": dict(reasons.most_common()),
    }


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Counts in equal bins from the least to the greatest value, and the quartiles."""
    counts, edges = np.histogram(
        values, NUM_BINS, (float(values.min()), max(float(values.max()), values.min() + 1e-3))
    )
    quartiles = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "from": round(float(edges[0]), 4),
        "to": round(float(edges[-1]), 4),
        "counts": counts.tolist(),
        "quartiles": [round(float(q), 4) for q in quartiles],
    }


def reason_kind(reason: str) -> str:
    """`speech is 0.62, wanted …` and its like counted together as `speech`."""
    return reason.split()[0].rstrip(":,")


def _sample(data: DataFolder, count: int) -> list[dict[str, Any]]:
    """The same segments every time: by hash, half of them dropped ones where there are so many."""
    kept, dropped = (
        heapq.nsmallest(
            count, (r for r in read_rows(data.manifest) if (r.get("dropped") is None) is is_kept), _hash
        )
        for is_kept in (True, False)
    )
    num_dropped = min(len(dropped), max(count // 2, count - len(kept)))
    return kept[: count - num_dropped] + dropped[:num_dropped]


def _hash(row: dict[str, Any]) -> bytes:
    return hashlib.sha256(row["key"].encode()).digest()

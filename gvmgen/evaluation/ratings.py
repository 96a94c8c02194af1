"""`gvm-eval listen-results`: what listeners said, with intervals and how far they agree.

L listeners, U trials; NaN where a listener did not rate a trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gvmgen.evaluation.listening import KEY_KIND, SCALES
from gvmgen.evaluation.statistics import Estimate, adjusted, finite, mean_estimate, paired_p

RESULTS_KIND = "gvm-eval listening results"
SCALE_NAMES = [name for name, *_ in SCALES]
GROUPS = {"all": (True, False), "experts": (True,), "others": (False,)}
_HIGHEST = 7


@dataclass(frozen=True, kw_only=True)
class Listener:
    """One listener's file."""

    name: str
    is_expert: bool
    answers: dict[str, dict[str, int]]  # by trial, by scale


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """What one group of listeners said."""

    num_listeners: int
    means: dict[str, dict[str, Estimate]]  # by system, by scale
    agreement: dict[str, float]  # Krippendorff's alpha by scale
    p_values: dict[str, dict[str, float]]  # by `A – B`, by scale; adjusted


def rate(paths: Sequence[Path], key_path: Path) -> dict[str, Ratings]:
    """The ratings by group. Raises ValueError that names the file that cannot be used."""
    key = _read(key_path, KEY_KIND)
    listeners: dict[str, Listener] = {}
    for path in paths:
        listener = _listener(path, key)
        if listener.name in listeners:
            raise ValueError(f"{path}: the listener {listener.name} is in another file, too; remove one")
        listeners[listener.name] = listener
    groups = {
        group: [each for each in listeners.values() if each.is_expert in members]
        for group, members in GROUPS.items()
    }
    return {group: _ratings(members, key["trials"]) for group, members in groups.items() if members}


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file; it wants a {kind}") from error
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(values, dict) or values.get("kind") != kind:
        raise ValueError(f"{path}: is no {kind}")
    return values


def _listener(path: Path, key: dict[str, Any]) -> Listener:
    """A file's answers; a trial that was not rated on every scale is left out."""
    values = _read(path, RESULTS_KIND)
    if values.get("test") != key["test"]:
        raise ValueError(f"{path}: is of another test than the key; name the key that lies beside its page")
    answers = {}
    for answer in values["answers"]:
        given = {scale: answer[scale] for scale in SCALE_NAMES if scale in answer}
        is_on_scale = all(value in range(1, _HIGHEST + 1) for value in given.values())
        if answer["trial"] not in key["trials"] or not is_on_scale:
            raise ValueError(f"{path}: holds an answer that the page cannot have given: {answer}")
        if len(given) == len(SCALE_NAMES):
            answers[answer["trial"]] = given
    if not answers:
        raise ValueError(f"{path}: holds no complete answer")
    return Listener(name=values["listener"], is_expert=values["expert"] is True, answers=answers)


def _ratings(listeners: Sequence[Listener], trials: dict[str, dict[str, str]]) -> Ratings:
    systems = list(dict.fromkeys(trial["system"] for trial in trials.values()))
    by_scale = {scale: _matrix(listeners, trials, scale) for scale in SCALE_NAMES}
    of_system = {
        system: np.array([trial["system"] == system for trial in trials.values()]) for system in systems
    }
    # Each listener counts once: answers of one are alike, so listeners are what is drawn for the interval.
    per_listener = {
        system: {scale: _row_means(matrix[:, chosen]) for scale, matrix in by_scale.items()}
        for system, chosen in of_system.items()
    }
    return Ratings(
        num_listeners=len(listeners),
        means={
            system: {scale: mean_estimate(values) for scale, values in scales.items()}
            for system, scales in per_listener.items()
        },
        agreement={scale: krippendorff_alpha(matrix) for scale, matrix in by_scale.items()},
        p_values=_p_values(per_listener),
    )


def _matrix(listeners: Sequence[Listener], trials: dict[str, Any], scale: str) -> np.ndarray:
    """[L, U]"""
    rows = [[each.answers.get(trial, {}).get(scale, np.nan) for trial in trials] for each in listeners]
    return np.array(rows, float)


def _row_means(matrix: np.ndarray) -> np.ndarray:
    """[L, U] -> [L]; NaN for a listener without an answer."""
    known = ~np.isnan(matrix)
    counts = known.sum(axis=1)
    sums = np.where(known, matrix, 0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _p_values(per_listener: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Paired over listeners, adjusted over all pairs and scales."""
    cells = [(a, b, scale) for a, b in combinations(per_listener, 2) for scale in SCALE_NAMES]
    p_values = adjusted([paired_p(per_listener[a][scale], per_listener[b][scale]) for a, b, scale in cells])
    found: dict[str, dict[str, float]] = {}
    for (a, b, scale), p in zip(cells, p_values, strict=True):
        found.setdefault(f"{a} – {b}", {})[scale] = p
    return found


def krippendorff_alpha(ratings: np.ndarray) -> float:
    """Agreement of raters on an ordinal scale: 1 full, 0 as by chance. [L, U]; NaN where nothing can be told.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section D and ordinal metric.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = np.array([[(unit == value).sum() for value in values] for unit in ratings.T], float)  # [U, V]
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        return float("nan")
    weights = 1 / (counts.sum(axis=1) - 1)
    coincidences = np.einsum("uv,uw,u->vw", counts, counts, weights) - np.diag(weights @ counts)
    totals = coincidences.sum(axis=1)
    ranks = np.cumsum(totals) - totals / 2  # the ordinal metric is that of the ratings' mean ranks
    distance = (ranks[:, None] - ranks[None]) ** 2
    expected = float((np.outer(totals, totals) * distance).sum())
    if not expected:
        return float("nan")
    return 1 - (totals.sum() - 1) * float((coincidences * distance).sum()) / expected


def to_json(ratings: dict[str, Ratings]) -> dict[str, Any]:
    """Plain JSON; null where there is no value."""
    return {group: finite(asdict(each)) for group, each in ratings.items()}


def markdown(ratings: dict[str, Ratings]) -> str:
    """A table a group, as table 2 of the publication."""
    parts = ["# Listening test", ""]
    for group, each in ratings.items():
        titles = [title for _, title, *_ in SCALES]
        parts += [f"## {group}: {each.num_listeners} listeners", ""]
        parts += [f"| system | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
        parts += [
            f"| {system} | " + " | ".join(_cell(scales[scale]) for scale in SCALE_NAMES) + " |"
            for system, scales in each.means.items()
        ]
        parts.append(
            "| *agreement, α* | " + " | ".join(_number(each.agreement[scale]) for scale in SCALE_NAMES) + " |"
        )
        parts += [
            f"| *p, {pair}* | " + " | ".join(_number(scales[scale], 3) for scale in SCALE_NAMES) + " |"
            for pair, scales in each.p_values.items()
        ]
        parts.append("")
    return "\n".join(parts)


def _cell(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return _number(estimate.value)
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"

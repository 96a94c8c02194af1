"""The scores as Markdown, one table a group of metrics, as in tables 3 and 4 of the publication."""

from __future__ import annotations

import math

from gvmgen.evaluation.judging import SystemScores
from gvmgen.evaluation.metrics import BY_NAME, GROUPS, METRICS
from gvmgen.evaluation.scoring import REFERENCE, Comparison, Scores, described

SIGNIFICANT = 0.05
INTERVALS = (
    "Intervals are 95 %: of means by bootstrap over videos; of FAD and KAD by random halves of the pieces, "
    "as a bootstrap repeats pieces, which makes distances larger. Shuffled: with the music of other videos."
)


def columns(scores: Scores, group: str) -> list[str]:
    """The group's metrics that some system has a value of."""
    return [
        metric.name
        for metric in METRICS
        if metric.group == group and any(metric.name in system.estimates for system in scores.systems)
    ]


def cell(system: SystemScores, metric: str) -> str:
    """`0.31 [0.25, 0.37]`, with the shuffled control where there is one; `–` without a value."""
    estimate = system.estimates.get(metric)
    if estimate is None:
        return "–"
    digits = BY_NAME[metric].digits
    text = f"{estimate.value:.{digits}f}"
    if math.isfinite(estimate.low):
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    if metric in system.shuffled:
        text += f", shuffled {system.shuffled[metric]:.{digits}f}"
    return text


def markdown(scores: Scores) -> str:
    """The whole report as text."""
    parts = ["# Scores", "", *heading(scores), ""]
    for group, title in GROUPS.items():
        names = columns(scores, group)
        if names:
            parts += [f"## {title}", "", *_table(scores, names), "", *_meanings(names), ""]
    parts += [*_significance(scores), *notes(scores)]
    return "\n".join(parts).rstrip() + "\n"


def heading(scores: Scores) -> list[str]:
    """What the figures stand on."""
    about = [f"{len(scores.videos)} videos. Embedder: {scores.embedder}.", INTERVALS]
    if "cmr" in columns(scores, "picture"):
        size = scores.batch_size
        about.append(
            f"CMR and accuracy are those of batches of {size}, for all systems: chance is {1 / size:.3g}."
        )
    return about


def _table(scores: Scores, names: list[str]) -> list[str]:
    head = ["system", "N", *(described(name) for name in names)]
    rows = [
        [system.name, str(system.num_pieces), *(cell(system, name) for name in names)]
        for system in scores.systems
        if any(name in system.estimates for name in names)
    ]
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _meanings(names: list[str]) -> list[str]:
    return [f"- {BY_NAME[name].title}: {BY_NAME[name].about}" for name in names]


def verdict(comparison: Comparison) -> str:
    """Which of the two is better, in words."""
    is_first = (comparison.difference > 0) == (BY_NAME[comparison.metric].better == "higher")
    better, worse = (
        (comparison.first, comparison.second) if is_first else (comparison.second, comparison.first)
    )
    return f"{better} better than {worse}"


def significant(scores: Scores) -> list[Comparison]:
    return [each for each in scores.comparisons if each.p < SIGNIFICANT]


def _significance(scores: Scores) -> list[str]:
    if not scores.comparisons:
        return []
    found = [
        f"- {described(each.metric)}: {verdict(each)} by {abs(each.difference):.3g} (p = {each.p:.2g})"
        for each in significant(scores)
    ]
    method = (
        "Paired over videos by permutation, FAD and KAD over halves; p adjusted by Benjamini and Hochberg "
        f"over {len(scores.comparisons)} comparisons."
    )
    return ["## Differences that are no chance (p < 0.05)", "", method, "", *(found or ["None."]), ""]


def notes(scores: Scores) -> list[str]:
    """What is missing, what is too much, what failed."""
    found = [
        f"- {name}: no music for {len(videos)} of {len(scores.videos)} videos: {_few(videos)}"
        for name, videos in scores.missing.items()
    ]
    found += [
        f"- {name}: {len(files)} files belong to no video: {_few(files)}"
        for name, files in scores.extra.items()
    ]
    found += [f"- left out: {reason}" for reason in scores.failures.values()]
    if all(system.name != REFERENCE for system in scores.systems):
        found.append("- no --reference, so no distances to real music")
    return ["## Notes", "", *found] if found else []


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")

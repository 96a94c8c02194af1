"""`gvm-eval score`: any systems' music for the same videos, held side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gvmgen.evaluation.evaluated import Evaluated, batch_size, evaluate
from gvmgen.evaluation.judging import Reference, SystemScores, Takes, judge
from gvmgen.evaluation.measuring import Job, Measurer, as_evaluator, duration_of, measure, sound_job
from gvmgen.evaluation.metrics import BY_NAME, METRICS, OF_SETS
from gvmgen.evaluation.pairing import System, find_music, find_system, find_videos
from gvmgen.evaluation.statistics import adjusted, finite, paired_p, paired_p_of_halves

REFERENCE = "reference"  # its name in the tables
CACHE_NAME = "measured"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be scored."""

    videos: dict[str, Path]
    systems: tuple[System, ...]
    reference: System | None

    @property
    def all_systems(self) -> tuple[System, ...]:
        return self.systems if self.reference is None else (self.reference, *self.systems)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems by one metric."""

    metric: str
    first: str
    second: str
    difference: float  # first - second, over the videos that both have
    p: float  # adjusted over all comparisons of the table


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All that the table, the page and the JSON show."""

    videos: list[str]
    embedder: str
    batch_size: int  # of the evaluator's CMR and accuracy, the same for all systems; chance is one over it
    systems: list[SystemScores]  # the reference first, where there is one
    comparisons: list[Comparison]
    missing: dict[str, list[str]]  # videos without music, by system
    extra: dict[str, list[str]]  # files without a video, by system
    failures: dict[str, str]  # why, by file

    @property
    def candidates(self) -> list[SystemScores]:
        """The systems without the reference."""
        return [system for system in self.systems if system.name != REFERENCE]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null where there is no value."""
        return {
            "videos": self.videos,
            "embedder": self.embedder,
            "batch_size": self.batch_size,
            "systems": {s.name: _system_json(s, self.videos) for s in self.systems},
            "comparisons": [finite(asdict(each)) for each in self.comparisons],
            "missing": self.missing,
            "extra": self.extra,
            "failures": self.failures,
        }


def make_plan(videos: Path, systems: Sequence[tuple[str, Path]], reference: Path | None) -> Plan:
    """Find everything. Raises ValueError for a folder that cannot be used, or a name given twice."""
    names = [name for name, _ in systems]
    for name in names:
        if names.count(name) > 1 or name == REFERENCE:
            raise ValueError(f"--system {name}=…: the name is taken; give another one")
    found = find_videos(videos)
    return Plan(
        videos=found,
        systems=tuple(find_system(name, folder, found) for name, folder in systems),
        reference=None if reference is None else find_music(REFERENCE, reference, found, "--reference"),
    )


def score(plan: Plan, measurer: Measurer, workers: int | None = None) -> Scores:
    """Measure all files that are not measured yet, then compare. A broken file is named and left out."""
    limits_s = {video: duration_of(path) for video, path in plan.videos.items()}
    looks = {video: Job(path=path, kind="picture") for video, path in plan.videos.items()}
    sounds = {system.name: _jobs(system, limits_s) for system in plan.all_systems}
    jobs = [
        *looks.values(),
        *(job for of_video in sounds.values() for of_take in of_video.values() for job in of_take),
    ]
    if measurer.evaluator is not None:
        jobs += [as_evaluator(job) for job in jobs]
    failures = measure(measurer, jobs, workers)
    motions = {v: measurer.motion(job) for v, job in looks.items() if job not in failures}
    reference = None
    if plan.reference is not None:
        reference = Reference(_takes(measurer, sounds[REFERENCE], failures, REFERENCE))
    videos = list(plan.videos)
    pairs = {name: _readable(looks, by_video, failures) for name, by_video in sounds.items()}
    batch = batch_size(map(len, pairs.values()))
    systems = [
        judge(
            system.name,
            videos,
            motions,
            _takes(measurer, sounds[system.name], failures, system.name),
            None if system is plan.reference else reference,
            _evaluated(measurer, pairs[system.name], batch),
        )
        for system in plan.all_systems
    ]
    return Scores(
        videos=videos,
        embedder=measurer.description,
        batch_size=batch,
        systems=systems,
        comparisons=compare([system for system in systems if system.name != REFERENCE]),
        missing={s.name: list(s.missing) for s in plan.all_systems if s.missing},
        extra={s.name: list(s.extra) for s in plan.all_systems if s.extra},
        failures={str(job.path): reason for job, reason in failures.items()},
    )


def _jobs(system: System, limits_s: dict[str, float | None]) -> dict[str, list[Job]]:
    """What is to be heard, by video."""
    return {
        video: [sound_job(path, limits_s[video]) for path in paths] for video, paths in system.takes.items()
    }


def _takes(measurer: Measurer, jobs: dict[str, list[Job]], failures: dict[Job, str], name: str) -> Takes:
    takes = {
        video: [measurer.heard(job) for job in of_video if job not in failures]
        for video, of_video in jobs.items()
    }
    found = {video: heard for video, heard in takes.items() if heard}
    if not found:
        first = next(job for of_video in jobs.values() for job in of_video)
        raise ValueError(f"{name}: none of its files can be used; {failures[first]}")
    return found


def _readable(
    looks: dict[str, Job], sounds: dict[str, list[Job]], failures: dict[Job, str]
) -> dict[str, tuple[Job, Job]]:
    """The videos with their first takes, where both could be read."""
    return {
        video: (looks[video], jobs[0])
        for video, jobs in sounds.items()
        if not {each for job in (looks[video], jobs[0]) for each in (job, as_evaluator(job))} & set(failures)
    }


def _evaluated(measurer: Measurer, pairs: dict[str, tuple[Job, Job]], batch: int) -> Evaluated | None:
    """What the evaluator says of the pairs; None without one, or where there is nothing to tell apart."""
    if measurer.evaluator is None or batch < 2:
        return None
    read = {
        video: (measurer.seconds(as_evaluator(look)), measurer.seconds(as_evaluator(sound)))
        for video, (look, sound) in pairs.items()
    }
    return evaluate(measurer.evaluator, read, batch)


def compare(systems: Sequence[SystemScores]) -> list[Comparison]:
    """Every pair of systems by every metric that has a better and a worse; p adjusted over all of them."""
    found = [
        comparison
        for metric in METRICS
        if metric.better
        for first, second in combinations(systems, 2)
        if (comparison := _compared(metric.name, first, second)) is not None
    ]
    p_values = adjusted([each.p for each in found])
    return [Comparison(**(asdict(each) | {"p": p})) for each, p in zip(found, p_values, strict=True)]


def _compared(metric: str, first: SystemScores, second: SystemScores) -> Comparison | None:
    if metric not in first.estimates or metric not in second.estimates:
        return None
    if metric in OF_SETS:
        difference = first.estimates[metric].value - second.estimates[metric].value
        # The same random halves: of the same videos only.
        is_paired = np.array_equal(first.has_music, second.has_music)
        halves = (first.of_halves[metric], second.of_halves[metric]) if is_paired else ([], [])
        p = paired_p_of_halves(*halves, difference, first.num_pieces)
    else:
        a, b = first.items[metric], second.items[metric]
        difference, p = _mean(a - b), paired_p(a, b)
    return Comparison(metric=metric, first=first.name, second=second.name, difference=difference, p=p)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _system_json(system: SystemScores, videos: list[str]) -> dict[str, Any]:
    estimates = {
        metric: finite(asdict(estimate))
        | ({"shuffled": system.shuffled[metric]} if metric in system.shuffled else {})
        for metric, estimate in system.estimates.items()
    }
    items = {
        video: finite({metric: float(values[i]) for metric, values in system.items.items()})
        for i, video in enumerate(videos)
    }
    return {"metrics": estimates, "items": items}


def write_json(scores: Scores, path: Path) -> None:
    path.write_text(
        json.dumps(scores.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def described(metric: str) -> str:
    """A metric's title with an arrow to its better side."""
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[BY_NAME[metric].better]
    return BY_NAME[metric].title + arrow

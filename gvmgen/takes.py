"""Several pieces for one video: which fits its picture best, and where all of them are kept.

G steps of the common grid, N waveform samples.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gvmgen.evaluation.content import cut_alignment, energy_motion, onset_motion
from gvmgen.evaluation.listener import listener
from gvmgen.evaluation.motion import GRID_RATE, Motion, measure_motion
from gvmgen.finish.mastering import SOUND_SUFFIXES, Mastering
from gvmgen.finish.sheet import Card, contact_sheet
from gvmgen.generate import Music
from gvmgen.runs import write_text
from gvmgen.windows import Progress
from shards.spec import SAMPLE_RATE

STRETCH_S = 300  # a long piece is measured in stretches, as memory grows with what is measured at once
BY_JUDGE = ("cmr", "cut_onsets")  # what ranks takes where the evaluation model can judge
BY_MOTION = ("cut_onsets", "onset_motion", "energy_motion")  # and where it cannot

Scores = dict[str, float | None]  # None: could not be measured, as cuts where there are none
Judging = Callable[[Music], float | None]  # the evaluation model's similarity of music and video, -1 … 1


@dataclass(frozen=True)
class Take:
    """A piece and how well it fits the picture: the higher, the better."""

    music: Music
    scores: Scores
    rank: float  # mean over the scores that count of the place among all takes, 1 the first


def ranked(takes: Sequence[Music], progress: Progress, judge: Judging | None = None) -> list[Take]:
    """The takes of one video, the best first: by the judge and by cuts that are met by onsets.

    Without a judge, by cuts, and by onsets and energy that go with motion. By mean place, as the scores have
    no common unit; among equals by the judge, then the lower seed first.
    """
    progress("ranking", 0, len(takes))
    first = takes[0]
    motion = part_of(measure_motion(first.video), first.start_s, first.duration_s)
    scores = []
    for number, music in enumerate(takes, 1):
        scores.append(({} if judge is None else {"cmr": rounded(judge(music))}) | fit(music, motion))
        progress("ranking", number, len(takes))
    places = mean_places(scores, BY_MOTION if scores[0].get("cmr") is None else BY_JUDGE)
    found = [Take(*row) for row in zip(takes, scores, places, strict=True)]
    return sorted(found, key=lambda take: (take.rank, -(take.scores.get("cmr") or 0.0), take.music.seed))


def rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)


def fit(music: Music, motion: Motion) -> Scores:
    """How well a piece goes with the picture, by the measures of `gvm-eval score`; means over stretches."""
    waveform, parts = music.waveform, list(stretches(motion))
    rows = [_fit(waveform[round(start_s * SAMPLE_RATE) :], part) for start_s, part in parts]
    cuts = [len(part.cuts) for _, part in parts]
    lengths = [part.duration_s for _, part in parts]
    weights: dict[str, Sequence[float]]
    weights = {"cut_onsets": cuts, "onset_motion": lengths, "energy_motion": lengths}
    return {name: rounded(_mean([row[name] for row in rows], weight)) for name, weight in weights.items()}


def _fit(waveform: np.ndarray, motion: Motion) -> dict[str, float]:
    """Of float32 [N] as far as the motion goes."""
    course = listener().course(waveform[: round(motion.duration_s * SAMPLE_RATE)])
    return {
        "cut_onsets": cut_alignment(course.onsets, motion),
        "onset_motion": onset_motion(course, motion),
        "energy_motion": energy_motion(course, motion),
    }


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """The weighted mean of the values that are known."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def stretches(motion: Motion) -> Iterator[tuple[float, Motion]]:
    """Equal parts of about `STRETCH_S`, each with the second it starts at."""
    count = max(1, round(motion.duration_s / STRETCH_S))
    for number in range(count):
        start_s = motion.duration_s * number / count
        yield start_s, part_of(motion, start_s, motion.duration_s / count)


def part_of(motion: Motion, start_s: float, duration_s: float) -> Motion:
    """What moves in a part of the video, on the part's own clock."""
    first, last = round(start_s * GRID_RATE), round((start_s + duration_s) * GRID_RATE)
    inside = (motion.cuts >= start_s) & (motion.cuts < start_s + duration_s)
    return replace(
        motion, curve=motion.curve[first:last], cuts=motion.cuts[inside] - start_s, duration_s=duration_s
    )


def mean_places(scores: Sequence[Scores], names: Sequence[str]) -> list[float]:
    """The mean place of each row over those scores that all rows have; equal scores share a place."""
    names = [name for name in names if all(row[name] is not None for row in scores)]
    if not names:
        return [1.0] * len(scores)
    values = np.array([[row[name] for name in names] for row in scores], float)  # [takes, scores]
    better = (values[None] > values[:, None]).sum(axis=1)  # how many takes are better than this one
    return [round(float(place), 2) for place in 1 + better.mean(axis=1)]


def finished(
    takes: Sequence[Take], folder: Path, suffix: str, mastering: Mastering
) -> Iterator[tuple[Take, Path]]:
    """Each take and its file, written side by side: ffmpeg needs a processor each."""

    def write(take: Take) -> Path:
        return take.music.save(folder / f"seed_{take.music.seed}{suffix}", mastering)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(takes, pool.map(write, takes), strict=True)


def keep_takes(
    takes: Sequence[Take], output: Path, mastering: Mastering, progress: Progress
) -> list[dict[str, Any]]:
    """Write all takes beside the output, in `<stem>_takes`: their files, scores.json and a contact sheet.

    Returns what stands in scores.json: seed, file, rank and scores of each, the best first.
    """
    folder = output.with_name(f"{output.stem}_takes")
    folder.mkdir(exist_ok=True)
    suffix = output.suffix
    if suffix.lower() not in SOUND_SUFFIXES:  # a film, whose takes are to be listened to
        suffix, mastering = ".m4a", replace(mastering, sample_rate=None)
    progress("finishing", 0, len(takes))
    cards, rows = [], []
    for number, (take, path) in enumerate(finished(takes, folder, suffix, mastering), 1):
        rows.append(
            {"seed": take.music.seed, "file": str(path), "rank": take.rank, "scores": dict(take.scores)}
        )
        cards.append(Card(path, take.music.seed, take.rank, take.scores))
        progress("finishing", number, len(takes))
    first = takes[0].music
    about = {"video": str(first.video), "tags": dict(first.tags) | {"seed": None}, "takes": rows}
    write_text(folder / "scores.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    contact_sheet(folder / "index.html", first.video, first.start_s, first.duration_s, cards)
    return rows

"""Several pieces for one video: which fits its picture best, and where all of them are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gvmgen.evaluation.content import cut_alignment, energy_motion, onset_motion
from gvmgen.evaluation.extras import needed
from gvmgen.evaluation.motion import GRID_RATE, Motion, measure_motion
from gvmgen.evaluation.sound import measure_sound
from gvmgen.finish.mastering import SOUND_SUFFIXES, Mastering
from gvmgen.finish.sheet import Card, contact_sheet
from gvmgen.generate import Music, Progress

Scores = dict[str, float | None]  # None: could not be measured, as cuts where there are none


@dataclass(frozen=True)
class Take:
    """A piece and how well it fits the picture: the higher, the better."""

    music: Music
    scores: Scores
    rank: float  # mean over the scores of the place among all takes, 1 the first


def check_ranking() -> None:
    """Raise MissingExtraError where what ranks takes is not installed."""
    for module in ("librosa", "pyloudnorm"):
        needed(module)


def ranked(takes: Sequence[Music], progress: Progress) -> list[Take]:
    """The takes of one video, the best first: cuts met by onsets, onsets and energy that go with motion.

    By mean place, as the scores have no common unit; among equals the lower seed first.
    """
    progress("ranking", 0, len(takes))
    first = takes[0]
    motion = part_of(measure_motion(first.video), first.start_s, first.duration_s)
    scores = []
    for number, music in enumerate(takes, 1):
        scores.append(fit(music, motion))
        progress("ranking", number, len(takes))
    places = mean_places(scores)
    found = [Take(*row) for row in zip(takes, scores, places, strict=True)]
    return sorted(found, key=lambda take: (take.rank, take.music.seed))


def fit(music: Music, motion: Motion) -> Scores:
    """How well a piece goes with the picture, by the measures of `gvm-eval score`."""
    sound = measure_sound(music.waveform)
    values = {
        "cut_onsets": cut_alignment(sound.onsets, motion),
        "onset_motion": onset_motion(sound, motion),
        "energy_motion": energy_motion(sound, motion),
    }
    return {name: None if math.isnan(value) else round(value, 3) for name, value in values.items()}


def part_of(motion: Motion, start_s: float, duration_s: float) -> Motion:
    """What moves in a part of the video, on the part's own clock."""
    first, last = round(start_s * GRID_RATE), round((start_s + duration_s) * GRID_RATE)
    inside = (motion.cuts >= start_s) & (motion.cuts < start_s + duration_s)
    return replace(
        motion, curve=motion.curve[first:last], cuts=motion.cuts[inside] - start_s, duration_s=duration_s
    )


def mean_places(scores: Sequence[Scores]) -> list[float]:
    """The mean place of each row over the scores that all rows have; equal scores share a place."""
    names = [name for name in scores[0] if all(row[name] is not None for row in scores)]
    if not names:
        return [1.0] * len(scores)
    values = np.array([[row[name] for name in names] for row in scores], float)  # [takes, scores]
    better = (values[None] > values[:, None]).sum(axis=1)  # how many takes are better than this one
    return [round(float(place), 2) for place in 1 + better.mean(axis=1)]


def keep_takes(
    takes: Sequence[Take], output: Path, mastering: Mastering, progress: Progress
) -> list[dict[str, Any]]:
    """Write all takes beside the output, in `<stem>_takes`: their files, scores.json and a contact sheet.

    Returns what stands in scores.json: seed, file, rank and scores of each, the best first.
    """
    folder = output.with_name(f"{output.stem}_takes")
    folder.mkdir(exist_ok=True)
    suffix = output.suffix if output.suffix.lower() in SOUND_SUFFIXES else ".m4a"
    progress("finishing", 0, len(takes))
    cards, rows = [], []
    for number, take in enumerate(takes, 1):
        path = take.music.save(folder / f"seed_{take.music.seed}{suffix}", mastering)
        rows.append(
            {"seed": take.music.seed, "file": str(path), "rank": take.rank, "scores": dict(take.scores)}
        )
        cards.append(Card(path, take.music.seed, take.rank, take.scores))
        progress("finishing", number, len(takes))
    first = takes[0].music
    about = {"video": str(first.video), "tags": dict(first.tags) | {"seed": None}, "takes": rows}
    (folder / "scores.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")
    contact_sheet(folder / "index.html", first.video, first.start_s, cards)
    return rows

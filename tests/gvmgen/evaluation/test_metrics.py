"""Every number of the table that has a better and a worse side, through the whole of `judge`: worse is worse.

Known answers of the single metrics stand in test_content, test_distribution and test_model; those of the
evaluation model get worse in test_training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gvmgen.evaluation.embedding import Embedding
from gvmgen.evaluation.judging import Reference, SystemScores, Takes, judge
from gvmgen.evaluation.measuring import Heard
from gvmgen.evaluation.metrics import METRICS
from gvmgen.evaluation.motion import GRID_RATE, Motion
from gvmgen.evaluation.sound import measure_sound
from shards.spec import SAMPLE_RATE
from tests.gvmgen.evaluation.made_pairs import chords, clicks

for package in ("librosa", "pyloudnorm", "scipy"):
    pytest.importorskip(package)
DURATION_S = 9.0
TEMPI = (84, 92, 100, 108, 116, 124, 132, 140)
VIDEOS = [f"at {tempo}" for tempo in TEMPI]
OF_THE_EVALUATOR = {"cmr", "accuracy", "ta"}
CADENCE = np.array([[0, 4, 7], [5, 9, 12], [7, 11, 14], [0, 4, 7]])  # semitones


def beats_of(number: int) -> np.ndarray:
    return np.arange(0.3, DURATION_S - 0.2, 60 / TEMPI[number])


def film(number: int) -> Motion:
    """A cut on every second beat, and nothing that moves between them."""
    cuts = beats_of(number)[::2]
    curve = np.zeros(round(DURATION_S * GRID_RATE), np.float32)
    curve[(cuts * GRID_RATE).astype(int)] = 100
    return Motion(curve=curve, cuts=cuts, duration_s=DURATION_S)


def music(number: int) -> np.ndarray:
    """A beat that is loud on the cuts, over a cadence in a key of its own."""
    beats = beats_of(number)
    beat = clicks(beats[::2], DURATION_S) + 0.3 * clicks(beats[1::2], DURATION_S)
    pitches = 220 * 2 ** ((CADENCE + number) / 12)
    return beat + 0.1 * chords(*map(tuple, pitches), each_s=DURATION_S / len(CADENCE))


def hear(number: int, waveform: np.ndarray) -> Heard:
    rng = np.random.default_rng(number)
    rows = rng.normal(size=(9, 4)) + 3 * rng.normal(size=4)
    embedding = Embedding(rows=rows, classes=rng.dirichlet(np.ones(5)))
    return Heard(sound=measure_sound(waveform), embedding=embedding, full_s=DURATION_S)


def all_music(change: Callable[[np.ndarray], np.ndarray] = lambda waveform: waveform) -> Takes:
    return {video: [hear(number, change(music(number)))] for number, video in enumerate(VIDEOS)}


@pytest.fixture(scope="module")
def good() -> Takes:
    return all_music()


def with_noisy_embeddings(takes: Takes) -> Takes:
    rng = np.random.default_rng(0)
    return {
        video: [replace(heard, embedding=Embedding(rows=heard.embedding.rows + 20 * rng.normal(size=(9, 4))))]
        for video, (heard,) in takes.items()
    }


def with_gaps(waveform: np.ndarray) -> np.ndarray:
    return waveform * (np.arange(len(waveform)) % SAMPLE_RATE < SAMPLE_RATE // 2)


HARMS: dict[str, Callable[[Takes], Takes]] = {
    "shuffled pairs": lambda takes: dict(
        zip(takes, [*list(takes.values())[1:], takes[VIDEOS[0]]], strict=True)
    ),
    "late by 0.25 s": lambda _: all_music(lambda waveform: np.roll(waveform, SAMPLE_RATE // 4)),
    "noise": with_noisy_embeddings,
    "one track for all": lambda takes: dict.fromkeys(takes, takes[VIDEOS[0]]),
    "gaps": lambda _: all_music(with_gaps),
    "overdriven": lambda _: all_music(lambda waveform: np.clip(9 * waveform, -1, 1)),
}
HARMED_BY = {
    "onset_motion": ("shuffled pairs", "late by 0.25 s"),
    "energy_motion": ("shuffled pairs", "late by 0.25 s"),
    "cut_onsets": ("shuffled pairs", "late by 0.25 s"),
    "cut_beats": ("shuffled pairs", "late by 0.25 s"),
    "fad": ("noise", "one track for all"),
    "fad_inf": ("noise", "one track for all"),
    "kad": ("noise", "one track for all"),
    "kld": ("shuffled pairs", "one track for all"),
    "precision": ("noise",),
    "density": ("noise",),
    "recall": ("one track for all",),
    "coverage": ("noise", "one track for all"),
    "key_agreement": ("shuffled pairs", "one track for all"),
    "tempo_agreement": ("shuffled pairs", "one track for all"),
    "silence": ("gaps",),
    "clipping": ("overdriven",),
}


def test_every_metric_with_a_worse_side_is_harmed_here() -> None:
    assert set(HARMED_BY) | OF_THE_EVALUATOR == {metric.name for metric in METRICS if metric.better}


@pytest.mark.parametrize("harm", HARMS)
def test_what_a_harm_makes_worse_is_measured_as_worse(harm: str, good: Takes) -> None:
    reference, motions = Reference(good), {video: film(number) for number, video in enumerate(VIDEOS)}

    def judged(takes: Takes) -> SystemScores:
        return judge("system", VIDEOS, motions, takes, reference)

    before, after = judged(good).estimates, judged(HARMS[harm](good)).estimates
    lower_is_better = {metric.name for metric in METRICS if metric.better == "lower"}
    harmed = [metric for metric, harms in HARMED_BY.items() if harm in harms]
    for metric in harmed:
        loss = before[metric].value - after[metric].value
        assert (-loss if metric in lower_is_better else loss) > 0.01, (metric, before[metric], after[metric])


def test_takes_differ_by_as_much_as_their_embeddings() -> None:
    """Two takes alike, and two that point opposite ways."""
    heard = hear(0, music(0))
    mirrored = replace(heard, embedding=Embedding(rows=-heard.embedding.rows))
    for takes, wanted in (([heard, heard], 0), ([heard, mirrored], 2)):
        found = judge("system", VIDEOS[:1], {}, {VIDEOS[0]: takes}, None)
        assert found.estimates["take_diversity"].value == pytest.approx(wanted, abs=1e-9)

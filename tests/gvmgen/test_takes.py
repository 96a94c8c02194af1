"""How takes are ranked, and what of a video's motion counts for a part of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("librosa", reason="librosa measures what takes are ranked by")

from gvmgen import takes
from gvmgen.evaluation.listener import Listener
from gvmgen.evaluation.motion import GRID_RATE, Motion
from gvmgen.evaluation.sound import Course, measure_course
from gvmgen.finish.sound import Sound
from gvmgen.generate import Music
from gvmgen.takes import Scores, fit, mean_places, part_of, ranked
from shards.spec import SAMPLE_RATE

CUTS = np.array([1.3, 2.9, 4.2, 6.1, 7.4])


def clicking(seed: int, at_s: np.ndarray) -> Music:
    """8 s with a short noise at some moments."""
    samples = np.zeros(8 * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(1600) * np.exp(-np.arange(1600) / 300)
    for moment in at_s:
        samples[int(moment * SAMPLE_RATE) :][:1600] += 0.3 * noise
    sound = Sound(SAMPLE_RATE)
    sound.append(samples)
    return Music(sound, Path("a.mp4"), 0.0, seed, "made", 1.0, {})


def motion() -> Motion:
    """8 s that move most where they are cut."""
    curve = np.full(8 * GRID_RATE, 0.1, np.float32)
    curve[(CUTS * GRID_RATE).astype(int)] = 30
    return Motion(curve=curve, cuts=CUTS, duration_s=8.0)


def test_the_take_whose_onsets_meet_the_cuts_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takes, "measure_motion", lambda _: motion())
    found = ranked([clicking(3, CUTS + 0.4), clicking(4, CUTS), clicking(5, CUTS - 0.5)], lambda *_: None)
    assert found[0].music.seed == 4
    assert found[0].rank == 1.0
    scores = [take.scores["cut_onsets"] for take in found]
    assert scores[0] is not None
    assert scores[0] > 0.8


def test_the_judge_counts_beside_the_cuts_and_decides_between_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takes, "measure_motion", lambda _: motion())
    likes = {3: 0.2, 4: 0.1, 5: None}
    pieces = [clicking(4, CUTS), clicking(3, CUTS + 0.4)]
    found = ranked(pieces, lambda *_: None, lambda music: likes[music.seed])
    assert [(take.music.seed, take.rank, take.scores["cmr"]) for take in found] == [
        (3, 1.5, 0.2),
        (4, 1.5, 0.1),
    ]
    without = ranked([*pieces, clicking(5, CUTS + 0.4)], lambda *_: None, lambda music: None)
    assert without[0].music.seed == 4  # by cuts and motion where the judge is silent


def test_a_long_piece_is_measured_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def course(_: Listener, waveform: np.ndarray) -> Course:
        lengths.append(len(waveform))
        return measure_course(waveform)

    at_once = fit(clicking(4, CUTS), motion())
    monkeypatch.setattr(Listener, "course", course)
    monkeypatch.setattr(takes, "STRETCH_S", 4)
    parts = fit(clicking(4, CUTS), motion())
    assert lengths == [4 * SAMPLE_RATE] * 2
    for name, value in at_once.items():
        assert parts[name] == pytest.approx(value, abs=0.15), name
    late = fit(clicking(4, CUTS + 0.4), motion())
    assert (parts["cut_onsets"] or 0) > (late["cut_onsets"] or 0) + 0.5


def test_places_are_means_over_what_all_takes_have() -> None:
    rows: list[Scores] = [
        {"a": 0.5, "b": 0.1, "c": None},
        {"a": 0.9, "b": 0.1, "c": 0.3},
        {"a": 0.7, "b": 0.4, "c": 0.1},
    ]
    assert mean_places(rows, ["a", "b", "c"]) == [2.5, 1.5, 1.5]
    assert mean_places(rows, ["a", "c"]) == [3.0, 1.0, 2.0]
    assert mean_places([{"c": None}, {"c": None}], ["c"]) == [1.0, 1.0]


def test_a_part_has_its_own_clock_and_only_its_own_cuts() -> None:
    part = part_of(motion(), start_s=2.0, duration_s=4.0)
    np.testing.assert_allclose(part.cuts, [0.9, 2.2])
    assert len(part.curve) == 4 * GRID_RATE
    assert part.duration_s == 4.0
    assert part.curve[9] == 30

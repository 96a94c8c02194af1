"""The corpus keeps its own rules: the notes, the sound and the picture say what the truth says."""

from __future__ import annotations

import ctypes.util
import json

import compose
import listen
import numpy as np
import pytest
import render_music
from scenario import FAMILIES, make_scenario, truth_per_second

from gvmgen.encoders.media import read_frames, read_waveform

SEEDS = range(40)
needs_synthesiser = pytest.mark.skipif(
    not (ctypes.util.find_library("fluidsynth") and render_music.SOUND_FONT.exists()),
    reason="needs libfluidsynth3 and fluid-soundfont-gm",
)


def test_a_seed_fixes_scenario_and_notes():
    assert make_scenario(7) == make_scenario(7) != make_scenario(8)
    assert compose.compose(make_scenario(7)) == compose.compose(make_scenario(7))


def test_three_pieces_for_one_picture_are_in_three_keys_each_with_its_own_notes():
    for seed in SEEDS:
        scenarios = [make_scenario(seed, piece=piece) for piece in range(3)]
        assert len({scenario.scenes for scenario in scenarios}) == 1
        assert len({compose.section_keys(scenario)[0][1] for scenario in scenarios}) == 3
        intervals = {tuple(np.diff([n.pitch for n in compose.compose(scenario)])) for scenario in scenarios}
        assert len(intervals) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_every_note_lies_in_the_key_of_its_section(seed):
    scenario = make_scenario(seed)
    keys = compose.section_keys(scenario)
    for note in compose.compose(scenario):
        tonic, is_minor = next(
            (t, m) for start_s, t, m in reversed(keys) if start_s <= note.start / compose.CODE_RATE + 1e-6
        )
        scale = compose.MINOR if is_minor else compose.MAJOR
        assert note.program < 0 or (note.pitch - tonic) % 12 in scale


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cymbal_answers_every_cut_and_nothing_else(seed):
    scenario = make_scenario(seed)
    cymbals = [n.start / 50 for n in compose.compose(scenario) if n.pitch == compose.CRASH and n.program < 0]
    assert len(cymbals) == len(scenario.cuts_s)
    np.testing.assert_allclose(cymbals, scenario.cuts_s, atol=0.5 * scenario.step_frames / 50 + 1e-6)


def test_music_grows_denser_with_motion_and_higher_with_brightness():
    onsets, pitches, truths = [], [], []
    for seed in SEEDS:
        scenario = make_scenario(seed)
        notes = compose.compose(scenario)
        truths.append(truth_per_second(scenario))
        onsets.append(np.histogram([n.start / 50 for n in notes], bins=np.arange(16))[0])
        pitches.append(np.array(compose.mean_pitch(notes, 15), dtype=float))
    motion = np.concatenate([t["motion"] for t in truths])
    brightness = np.concatenate([t["brightness"] for t in truths])
    assert listen.spearman(np.concatenate(onsets), motion) > 0.8
    pitch = np.concatenate(pitches)
    heard = ~np.isnan(pitch)
    assert listen.spearman(pitch[heard], brightness[heard]) > 0.75


def test_a_section_plays_its_family_and_no_other():
    for seed in SEEDS:
        scenario = make_scenario(seed)
        starts = [start_s for start_s, _, _ in compose.section_keys(scenario)]
        for note in compose.compose(scenario):
            section = max(i for i, start_s in enumerate(starts) if start_s <= note.start / 50 + 1e-6)
            voices = [kit[scenario.scenes[section].family] for kit in (compose.WESTERN, compose.CHINESE)]
            assert note.program < 0 or any(note.program in (v.lead, v.chords, v.bass) for v in voices)


@needs_synthesiser
def test_pieces_share_their_picture_and_have_each_its_music(tmp_path):
    pytest.importorskip("cv2")
    from corpus import make_pieces

    assert make_pieces(5, 2, tmp_path, 6.0) == "pair_000005_1.mkv"
    first, second = tmp_path / "pair_000005.mkv", tmp_path / "pair_000005_1.mkv"
    for one, other in zip(read_frames(first), read_frames(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(read_waveform(first) - read_waveform(second)).max() > 0.05
    keys = [
        json.loads(video.with_suffix(".json").read_text())["keys"][0]["tonic"] for video in (first, second)
    ]
    assert keys[0] != keys[1]


@needs_synthesiser
def test_the_synthesiser_gives_the_same_samples_whatever_sounded_before():
    notes = compose.compose(make_scenario(3))
    first = render_music.render_music(notes, 4.0)
    render_music.render_music(compose.compose(make_scenario(4)), 2.0)
    np.testing.assert_array_equal(render_music.render_music(notes, 4.0), first)
    assert len(first) == 4 * 32_000
    assert 0.05 < np.abs(first).max() < 0.98


def test_a_picture_is_as_bright_and_as_warm_as_its_scene():
    pytest.importorskip("cv2")
    from render_video import graded

    albedo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    lightness = [graded(albedo, b, 0.0).mean() for b in (0.0, 0.3, 0.6, 1.0)]
    assert lightness == sorted(lightness)
    redness = [np.subtract(*graded(albedo, 0.5, t).mean((0, 1))[[0, 2]]) for t in (-0.8, -0.3, 0.3, 0.8)]
    assert redness == sorted(redness)
    assert redness[0] < 0 < redness[-1]


@pytest.mark.parametrize("kind", ["landscape", "texture", "shapes", "particles", "city", "waves"])
def test_motion_smears_a_single_frame(kind):
    pytest.importorskip("cv2")
    from render_video import PAINTERS

    paint = PAINTERS[kind](np.random.default_rng(5))
    still, rushing = paint(300.0, 0.0).astype(float), paint(300.0, 35.0).astype(float)
    assert still.shape == (336, 448, 3)
    assert np.abs(still - rushing).mean() > 0.5
    if kind != "particles":  # whose strokes grow longer instead
        edges = [np.abs(np.diff(picture, axis=1)).mean() for picture in (still, rushing)]
        assert edges[1] < edges[0]


def test_ears_find_what_was_put_in():
    assert listen.spearman(np.arange(9), np.arange(9) ** 3) == pytest.approx(1)
    assert listen.matches(np.array([1.0, 1.2, 7.0]), np.array([1.1, 4.0])) == (1, 3, 2)
    assert listen.f1(np.array([[1, 3, 2], [1, 1, 1]])) == pytest.approx(4 / 7)
    rate = listen.SAMPLE_RATE
    time = np.arange(2 * rate) / rate
    clicks = sum(np.exp(-40 * np.clip(time - t, 0, None)) * (time >= t) for t in (0.5, 0.9, 1.3))
    tone = 0.3 * clicks * np.sin(2 * np.pi * 440 * time)
    np.testing.assert_allclose(listen.onset_times(tone), [0.5, 0.9, 1.3], atol=0.03)
    assert listen.longest_silence_s(np.concatenate([tone, np.zeros(rate)])) > 1
    scale = [440 * 2 ** (d / 12) for d in (0, 2, 4, 5, 7)]
    assert listen.in_key_share(sum(0.1 * np.sin(2 * np.pi * f * time) for f in scale)) > 0.99
    chromatic = [440 * 2 ** (d / 12) for d in range(12)]
    assert listen.in_key_share(sum(0.1 * np.sin(2 * np.pi * f * time) for f in chromatic)) < 0.8


def test_truth_has_a_value_for_every_second():
    truth = truth_per_second(make_scenario(11, 12.0))
    for name in ("motion", "brightness", "temperature", "family", "kind"):
        assert len(truth[name]) == 12
    assert set(truth["family"]) <= set(FAMILIES)
    assert all(0 <= value <= 1 for value in truth["motion"] + truth["brightness"])

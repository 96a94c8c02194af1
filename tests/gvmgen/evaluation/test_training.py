"""Training of the evaluation model: made pairs are learned, figures fall on controls, resume is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gvmgen.evaluation.agreement import Agreement, embed, in_batches, measure, shuffled, table
from gvmgen.evaluation.config import EvaluatorConfig
from gvmgen.evaluation.model import EvaluationModel
from gvmgen.evaluation.training import Trainer, draw_excerpts
from gvmgen.runs import RunFolder
from tests.gvmgen.evaluation.made_seconds import TINY, made_pairs

FINGERPRINT = {"video": {"dtype": "float32"}, "audio": {}}


def make_trainer(folder: Path, **changes: object) -> Trainer:
    run = RunFolder(folder)
    run.claim()
    return Trainer(made_pairs(40), replace(TINY, **changes), FINGERPRINT, run)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EvaluationModel:
    trainer = make_trainer(tmp_path_factory.mktemp("run"))
    assert trainer.run(save_every=1000)
    return trainer.model


@pytest.fixture(scope="module")
def agreement(trained: EvaluationModel) -> Agreement:
    return measure(trained, made_pairs(48, seed=1))


def test_pairs_that_belong_together_are_found(agreement: Agreement) -> None:
    found = agreement.figures["accuracy"]["true"]
    assert found.value > 0.95
    assert found.low <= found.value <= found.high
    assert agreement.chance == 1 / 16


def test_shuffled_pairs_are_found_no_better_than_by_chance(agreement: Agreement) -> None:
    assert agreement.figures["accuracy"]["shuffled"].value < 2 * agreement.chance
    assert agreement.figures["cmr"]["shuffled"].value < 2 * agreement.chance


def test_one_track_for_all_videos_is_found_by_chance(trained: EvaluationModel, agreement: Agreement) -> None:
    pairs = made_pairs(48, seed=1)
    collapsed = measure(trained, [pair.with_music(pairs[0].music) for pair in pairs]).figures
    assert collapsed["cmr"]["true"].value == pytest.approx(agreement.chance, abs=0.01)
    assert collapsed["accuracy"]["true"].value < 2 * agreement.chance


def test_the_more_noise_is_on_the_music_the_less_it_fits(trained: EvaluationModel) -> None:
    grades = []
    for level in (0.0, 1.0, 4.0):
        noise = torch.Generator().manual_seed(0)
        pairs = [
            pair.with_music(pair.music + level * torch.randn(pair.music.shape, generator=noise))
            for pair in made_pairs(48, seed=1)
        ]
        figures = measure(trained, pairs).figures
        grades.append([figures[name]["true"].value for name in ("cmr", "accuracy", "ta", "ta_printed")])
    for of_figure in zip(*grades, strict=True):
        assert list(of_figure) == sorted(of_figure, reverse=True)
        assert of_figure[0] > of_figure[2] + 0.1


def test_music_that_never_changes_has_the_ta_of_chance(
    trained: EvaluationModel, agreement: Agreement
) -> None:
    still = [pair.with_music(pair.music[:1].expand(12, -1)) for pair in made_pairs(4, seed=1)]
    ta = measure(trained, still).figures["ta"]["true"]
    assert ta.value == pytest.approx(agreement.ta_chance, abs=1e-5)


def test_ta_falls_to_chance_when_music_is_shifted_in_time(agreement: Agreement) -> None:
    ta = agreement.figures["ta"]
    assert ta["true"].value > 0.5
    for control in ("shifted_1s", "shifted_2s", "shifted_5s", "shifted_10s", "shuffled"):
        assert ta[control].value < 2.5 * agreement.ta_chance, control


def test_an_untrained_model_finds_pairs_by_chance_only() -> None:
    torch.manual_seed(0)
    untrained = EvaluationModel(EvaluatorConfig(video_dim=8, music_dim=8, dim=32, num_layers=1, num_heads=2))
    found = measure(untrained, made_pairs(48, seed=1)).figures["accuracy"]["true"]
    assert found.value < 0.25


def test_fewer_pairs_than_a_batch_are_one_batch_and_say_so(trained: EvaluationModel) -> None:
    few = measure(trained, made_pairs(5, seed=1))
    assert (few.batch_size, few.chance, few.num_pairs) == (5, 0.2, 5)
    assert "5 pairs, batches of 5; chance: CMR and pairs found 0.200, TA 0.083" in table(few)


def test_pairs_of_unlike_lengths_are_measured(trained: EvaluationModel) -> None:
    mixed = made_pairs(8, 12, seed=1) + made_pairs(8, 7, seed=2)
    assert measure(trained, mixed).figures["accuracy"]["true"].value > 0.9


def test_figures_do_not_depend_on_which_pairs_are_embedded_together(trained: EvaluationModel) -> None:
    pairs = [pair for i in range(6) for pair in made_pairs(1, 5 + i % 3, seed=i)]
    together = embed(trained, pairs)
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = embed(trained, [pair])
        torch.testing.assert_close(found.video, alone.video)
        assert found.ta == pytest.approx(alone.ta, abs=1e-5)


def test_one_pair_cannot_be_measured(trained: EvaluationModel) -> None:
    with pytest.raises(ValueError, match="1 pairs; at least two"):
        measure(trained, made_pairs(1))


def test_shuffling_leaves_no_pair_together() -> None:
    pairs = made_pairs(9)
    assert not any(torch.equal(a.music, b.music) for a, b in zip(pairs, shuffled(pairs), strict=True))


def test_batches_of_a_known_matrix_give_known_accuracies() -> None:
    """Of four pairs in one batch, the last two are mistaken for each other."""
    matrix = torch.eye(4)[[0, 1, 3, 2]]
    correct, probability = in_batches(4, 4, lambda batch: matrix[batch][:, batch])
    assert correct.tolist() == [1, 1, 0, 0]
    assert probability[0] > 0.99
    assert probability[3] < 0.01


def test_excerpts_keep_music_with_its_own_seconds_of_video() -> None:
    pairs = made_pairs(6)
    excerpts = draw_excerpts(pairs, np.random.default_rng(5))
    turn = torch.linalg.lstsq(pairs[0].video, pairs[0].music).solution
    for video, music, start in zip(*excerpts, strict=True):
        torch.testing.assert_close(video[start : start + len(music)] @ turn, music, atol=1e-4, rtol=1e-4)


def test_excerpts_shift_music_against_video() -> None:
    starts = [tuple(draw_excerpts(made_pairs(6), np.random.default_rng(i)).starts.tolist()) for i in range(9)]
    assert any(max(each) > 3 for each in starts)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", steps=8)
    whole.run(save_every=100)
    first = make_trainer(tmp_path / "cut", steps=8)
    for step in range(3):
        first.take_step(step)
    first.info = replace(first.info, step=3)
    first.save()
    del first
    second = make_trainer(tmp_path / "cut", steps=8)
    assert second.info.step == 3
    second.run(save_every=100)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_too_few_pairs_for_a_batch_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"40 pairs .* fewer than a batch of 64\. Pass a smaller --batch-size"
    ):
        make_trainer(tmp_path, batch_size=64)

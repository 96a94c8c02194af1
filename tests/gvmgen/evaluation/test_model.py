"""The evaluation model: known answers of its losses, and what its towers must not know."""

from __future__ import annotations

import math

import pytest
import torch

from gvmgen.evaluation.config import TEMPERATURE, EvaluatorConfig
from gvmgen.evaluation.model import EvaluationModel, diagonals, info_nce, similarities
from gvmgen.evaluation.training import alignment_loss

TINY = EvaluatorConfig(video_dim=6, music_dim=5, dim=16, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def model() -> EvaluationModel:
    torch.manual_seed(0)
    return EvaluationModel(TINY).eval()


def test_info_nce_of_identical_embeddings_is_the_log_of_the_batch() -> None:
    same = torch.ones(7, 3, 16)
    assert info_nce(similarities(same, same)).item() == pytest.approx(math.log(7), abs=1e-6)


def test_info_nce_of_perfect_pairs_has_its_closed_form() -> None:
    expected = math.log(math.exp(1 / TEMPERATURE) + 3) - 1 / TEMPERATURE  # three others at similarity 0
    assert info_nce(torch.eye(4)).item() == pytest.approx(expected, abs=1e-6)


def test_info_nce_treats_both_sides_alike() -> None:
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    assert info_nce(scores).item() == pytest.approx(info_nce(scores.mT).item(), abs=1e-6)


def test_similarity_of_a_video_with_itself_is_one_and_with_its_opposite_minus_one() -> None:
    x = torch.randn(1, 4, 16)
    assert similarities(x, x).item() == pytest.approx(1, abs=1e-6)
    assert similarities(x, -x).item() == pytest.approx(-1, abs=1e-6)


def test_similarities_know_when_things_happen() -> None:
    x = torch.eye(4)[None]  # every second is unlike every other
    assert similarities(x, x.roll(1, dims=1)).item() == pytest.approx(0, abs=1e-6)


def test_alignment_loss_is_zero_on_a_perfect_diagonal_and_known_on_an_even_one() -> None:
    assert alignment_loss(torch.eye(5)[None].diagonal(dim1=1, dim2=2)).item() == 0
    even = torch.full((1, 5, 5), 1 / 5).diagonal(dim1=1, dim2=2)
    assert alignment_loss(even).item() == pytest.approx((1 - 1 / 5) ** 2)


def test_diagonals_follow_music_that_starts_later() -> None:
    attention = torch.arange(24.0).view(1, 6, 4).repeat(2, 1, 1)  # six seconds of video, four of music
    own = diagonals(attention, torch.tensor([0, 2]))
    assert own.tolist() == [[0, 5, 10, 15], [8, 13, 18, 23]]


def test_rows_of_the_alignment_sum_to_one(model: EvaluationModel) -> None:
    video, music = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    attention = model.alignment(video, music)
    assert attention.shape == (2, 7, 5)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 7))
    fused = model.as_printed(torch.randn(2, 5, 16), music)
    torch.testing.assert_close(fused.attention.sum(dim=-1), torch.ones(2, 5))


def test_a_tower_does_not_know_how_far_a_second_is_from_the_start(model: EvaluationModel) -> None:
    still = torch.randn(1, 1, 6).expand(1, 9, 6)  # the same second nine times
    embedded = model.video_tower(still)[0]
    torch.testing.assert_close(embedded, embedded[:1].expand(9, -1))


def test_a_tower_reads_the_neighbours_of_a_second(model: EvaluationModel) -> None:
    seconds = torch.randn(1, 9, 6)
    changed = seconds.clone()
    changed[0, 3] += 1
    difference = (model.video_tower(changed) - model.video_tower(seconds))[0].norm(dim=-1)
    assert difference[2] > 1e-4
    assert difference[3] > difference[8]


def test_the_leak_free_embedding_of_a_video_does_not_depend_on_its_music(model: EvaluationModel) -> None:
    """The printed form's does: that is the leak."""
    video, music, other = torch.randn(1, 5, 6), torch.randn(1, 5, 5), torch.randn(1, 5, 5)
    seen = model.video_tower(video)
    beside = model.as_printed(seen, model.music_tower(music)).video
    beside_other = model.as_printed(seen, model.music_tower(other)).video
    torch.testing.assert_close(model.video_tower(video), seen)
    assert (beside - beside_other).norm() > 1e-3


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="dim 10 is no multiple of twice num_heads 4"):
        EvaluatorConfig(video_dim=1, music_dim=1, dim=10)

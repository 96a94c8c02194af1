"""The delay pattern. K codebooks, T code frames."""

from __future__ import annotations

import pytest
import torch

from gvmgen.delay import align_logits, decoder_inputs, delay, undelay

PAD = 99


def numbered_codes(num_codebooks: int, num_frames: int) -> torch.Tensor:
    """int64 [1, K, T]: code frame t of codebook k is 10 t + k."""
    return (10 * torch.arange(num_frames) + torch.arange(num_codebooks)[:, None])[None]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("num_codebooks", [1, 2, 4])
def test_undelay_inverts_delay(num_codebooks: int, num_frames: int) -> None:
    codes = numbered_codes(num_codebooks, num_frames)
    delayed = delay(codes, PAD)
    assert delayed.shape == (1, num_codebooks, num_frames + num_codebooks - 1)
    assert torch.equal(undelay(delayed), codes)


def test_codebook_k_comes_k_steps_late_between_pads() -> None:
    assert delay(numbered_codes(3, 2), PAD)[0].tolist() == [
        [0, 10, PAD, PAD],
        [PAD, 1, 11, PAD],
        [PAD, PAD, 2, 12],
    ]


def test_undelay_refuses_fewer_steps_than_codebooks_reach() -> None:
    with pytest.raises(ValueError, match="2 delayed steps are too few for 4 codebooks"):
        undelay(torch.zeros(1, 4, 2))


def test_the_decoder_starts_from_an_empty_step_and_reads_one_step_behind() -> None:
    codes = numbered_codes(3, 4)
    inputs = decoder_inputs(codes, PAD)
    assert inputs.shape == codes.shape
    assert inputs[0, :, 0].tolist() == [PAD] * 3
    assert torch.equal(inputs[:, :, 1:], delay(codes, PAD)[:, :, :3])


def test_logits_move_to_the_frame_whose_code_they_predict() -> None:
    steps = torch.arange(5.0)[None, None, :, None].expand(1, 3, 5, 1)  # a logit is its step's number
    logits, mask = align_logits(steps)
    assert mask[0].tolist() == [[True] * 5, [True] * 4 + [False], [True] * 3 + [False] * 2]
    assert logits[0, :, :, 0].tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [2, 3, 4, 0, 0]]


def test_a_shorter_row_is_masked_as_if_it_were_alone() -> None:
    steps = torch.randn(2, 3, 5, 7)
    _, mask = align_logits(steps, torch.tensor([5, 4]))
    _, alone = align_logits(steps[1:, :, :4])
    assert torch.equal(mask[1, :, :4], alone[0])
    assert not mask[1, :, 4].any()

"""Codes of a segment <-> the steps of the decoder.

B batch, K codebooks, T code frames, S = T + K - 1 delayed steps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def delay(codes: Tensor, pad_id: int) -> Tensor:
    """Shift codebook k right by k steps, so that one step predicts one code of every codebook.

    codes: int64 [B, K, T]. Returns int64 [B, K, T + K - 1], `pad_id` where a codebook has no code.
    Source: MusicGen (arXiv 2306.05284) section 2.2, delay pattern. Inverse: `undelay`.
    """
    batch, num_codebooks, num_frames = codes.shape
    delayed = codes.new_full((batch, num_codebooks, num_frames + num_codebooks - 1), pad_id)
    for k in range(num_codebooks):
        delayed[:, k, k : k + num_frames] = codes[:, k]
    return delayed


def undelay(delayed: Tensor) -> Tensor:
    """Shift codebook k left by k steps and drop what no longer holds a code of every codebook.

    delayed: [B, K, S, ...], codes or logits. Returns [B, K, S - K + 1, ...].
    """
    num_codebooks, num_steps = delayed.shape[1:3]
    num_frames = num_steps - num_codebooks + 1
    if num_frames < 0:
        raise ValueError(f"{num_steps} delayed steps are too few for {num_codebooks} codebooks")
    return torch.stack([delayed[:, k, k : k + num_frames] for k in range(num_codebooks)], dim=1)


def decoder_inputs(codes: Tensor, pad_id: int) -> Tensor:
    """What the decoder reads so that its step s predicts delayed step s: an empty step, then steps 0 … T - 2.

    codes: int64 [B, K, T]. Returns int64 [B, K, T]. The K - 1 steps after T are left out: codebook 0
    lies beyond the segment there, and a crop of a longer piece would teach that music ends.
    """
    num_frames = codes.shape[2]
    return torch.nn.functional.pad(delay(codes, pad_id)[:, :, : num_frames - 1], (1, 0), value=pad_id)


def align_logits(logits: Tensor, num_code_frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Move logits from the step that predicts a code to the code's own frame.

    logits: [B, K, T, V] by step. num_code_frames: int [B], each row's real length; None: all T.
    Returns ([B, K, T, V] by code frame, bool [B, K, T] mask); masked-out logits are zero.
    """
    mask = predicted(logits[..., 0], num_code_frames)
    padded = torch.nn.functional.pad(logits, (0, 0, 0, logits.shape[1] - 1))
    return undelay(padded) * mask[..., None], mask


def predicted(codes: Tensor, num_code_frames: Tensor | None = None) -> Tensor:
    """bool [B, K, T]: which of the codes [B, K, T] the steps of `decoder_inputs` predict.

    num_code_frames: int [B], each row's real length; None: all T.
    """
    batch, num_codebooks, num_frames = codes.shape
    if num_code_frames is None:
        num_code_frames = torch.full((batch,), num_frames, device=codes.device)
    ks = torch.arange(num_codebooks, device=codes.device)
    ts = torch.arange(num_frames, device=codes.device)
    return (ks[:, None] + ts) < num_code_frames[:, None, None]

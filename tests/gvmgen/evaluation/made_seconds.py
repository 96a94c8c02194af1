"""Pairs whose music follows their video by a rule that small models learn."""

from __future__ import annotations

import torch

from gvmgen.evaluation.config import EvaluatorTraining
from gvmgen.evaluation.seconds import Pair

DIM = 8
TINY = EvaluatorTraining(
    preset="pocket",
    dim=32,
    num_layers=1,
    num_heads=2,
    dropout=0.0,
    steps=120,
    batch_size=16,
    lr=5e-3,
    warmup_steps=10,
)


def made_pairs(count: int, num_seconds: int = 12, seed: int = 0) -> list[Pair]:
    """Each second of music is a fixed turn of the same second of video."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(99)))[0]
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randn(count, num_seconds, DIM, generator=generator)
    return [Pair(f"pair_{i}", video, video @ turn) for i, video in enumerate(videos)]

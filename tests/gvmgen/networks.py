"""Small networks of the real classes, and inputs for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gvmgen.config import ModelConfig
from gvmgen.model import GVMGen

TINY = ModelConfig(
    feature_dim=32,
    projection_dim=24,
    num_queries=4,
    transformation_num_layers=3,
    transformation_num_heads=2,
    dim=32,
    num_layers=2,
    num_heads=4,
    codebook_size=16,
)
NUM_PATCHES = 9


def make_network(seed: int = 0, **changes: Any) -> GVMGen:
    """A network of TINY's sizes with these changes, its weights drawn from the seed, in evaluation mode."""
    torch.manual_seed(seed)
    return GVMGen(replace(TINY, **changes)).eval()


def make_features(batch: int, num_frames: int, seed: int = 1) -> Tensor:
    """float32 [B, F, P, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_frames, NUM_PATCHES, TINY.feature_dim, generator=generator)


def make_codes(batch: int, num_code_frames: int, seed: int = 2) -> Tensor:
    """int64 [B, K, T]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, TINY.num_codebooks, num_code_frames)
    return torch.randint(TINY.codebook_size, shape, generator=generator)

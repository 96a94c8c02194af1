"""AdamW, and its learning rate as a function of the step and the layer."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gvmgen.config import TrainConfig
from gvmgen.learnable import rate_scale
from gvmgen.model import GVMGen

TABLES = ("qmap1", "qmap2", "absmax1", "absmax2")  # what 8 bits stand for, and each block's largest value
BLOCK = 256  # values
MIN_8BIT = 4096  # values; smaller tensors keep moments of 32 bits


def make_optimiser(network: GVMGen, config: TrainConfig, device: torch.device) -> Optimizer:
    """AdamW of the parameters that learn, in one group for each pace.

    8 bits: Dettmers et al. 2022 (arXiv 2110.02861). Raises ValueError where its package is missing.
    """
    groups: dict[float, list[Tensor]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[rate_scale(name, network.config.num_layers, config.lr_decay)].append(parameter)
    paced = [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]
    if config.optimizer == "adamw8bit":
        return _adamw8bit(paced, config)
    is_fused = device.type in ("cuda", "cpu") or None
    return torch.optim.AdamW(paced, lr=config.lr, weight_decay=config.weight_decay, fused=is_fused)


def _adamw8bit(groups: list[dict[str, Any]], config: TrainConfig) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "--optimizer adamw8bit needs bitsandbytes. Install it: pip install 'gvmgen[adamw8bit]'"
        ) from error
    return AdamW8bit(groups, lr=config.lr, weight_decay=config.weight_decay, min_8bit_size=MIN_8BIT)


def state_names(optimiser: Optimizer) -> tuple[str, ...]:
    """What the optimiser keeps of a parameter, by its own names."""
    if isinstance(optimiser, torch.optim.AdamW):
        return ("step", "exp_avg", "exp_avg_sq")
    return ("step", "state1", "state2", *TABLES)


def moment_bytes(num_values: int, optimizer: str) -> float:
    """What the two moments of a parameter take."""
    if optimizer == "adamw8bit" and num_values >= MIN_8BIT:
        return 2 * (num_values + 4 * num_values / BLOCK)
    return 8.0 * num_values


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of step 0 … num_steps - 1: linear warm-up, then a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]

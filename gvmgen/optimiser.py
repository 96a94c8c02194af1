"""AdamW, and its learning rate as a function of the step and the layer."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from gvmgen.config import TrainConfig
from gvmgen.learnable import rate_scale
from gvmgen.model import GVMGen


def adamw(network: GVMGen, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Of the parameters that learn, in one group for each pace."""
    groups: dict[float, list[Tensor]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[rate_scale(name, network.config.num_layers, config.lr_decay)].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "scale": scale} for scale, parameters in groups.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda" or None,
    )


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of step 0 … num_steps - 1: linear warm-up, then a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]

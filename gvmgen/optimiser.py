"""AdamW, its learning rate as a function of the step, and its state as named tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gvmgen.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=on_gpu or None
    )


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of step 0 … num_steps - 1: linear warm-up, then a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def state_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as `<parameter>/<moment>`: no pickle, and no order of parameters to keep."""
    return {
        f"{name}/{moment}": tensor.detach().contiguous()
        for name, parameter in model.named_parameters()
        for moment, tensor in optimiser.state[parameter].items()
    }


def load_state_tensors(
    model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str
) -> None:
    """Undo `state_tensors`. Raises ValueError where a moment is of no parameter or of another shape."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, moment = name.rsplit("/", 1)
        parameter = parameters.get(parameter_name)
        if parameter is None or (tensor.ndim and tensor.shape != parameter.shape):
            raise ValueError(f"{where}: {name} {list(tensor.shape)} is of no parameter of this model")
        place = "cpu" if moment == "step" and not parameter.is_cuda else parameter.device
        optimiser.state[parameter][moment] = tensor.to(place)

"""Named tensors become a network's weights: one at a time, without a second copy, every misfit named."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gvmgen.config import ModelConfig
from gvmgen.model import GVMGen


def empty_model(config: ModelConfig) -> GVMGen:
    """A network without memory, for `assign` to fill."""
    with torch.device("meta"):
        return GVMGen(config).eval()


def assign(
    model: GVMGen,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    where: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Make `tensors` the model's weights, converted one by one; dtype None keeps each one's own.

    Raises ValueError, opened by `where`, that names every missing, unexpected and mis-shaped tensor.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    taken: dict[str, Tensor] = {}
    problems = []
    for name, tensor in tensors:
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif tensor.shape != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, wanted {list(wanted[name])}")
            del wanted[name]
        else:
            taken[name] = tensor.to(device, dtype)
    problems += [f"missing {name}" for name in wanted if name not in taken]
    refuse(problems, where)
    model.load_state_dict(taken, assign=True)


def refuse(problems: list[str], where: str) -> None:
    """Raise ValueError where there are problems."""
    if problems:
        raise ValueError(f"{where} does not fit the model: {'; '.join(problems)}")

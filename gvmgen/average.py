"""A moving average of the weights, which composes better than any one step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of what learns: after each step, a = decay * a + (1 - decay) * w."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.tensors = {name: p.detach().clone() for name, p in learning(network)}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in learning(self.network):
            self.tensors[name].lerp_(parameter, 1 - self.decay)

    @contextmanager
    def composing(self) -> Iterator[None]:
        """Inside, the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """By value: a sharded network computes from memory of its own, not from what a parameter names."""
        for name, parameter in learning(self.network):
            held = parameter.clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(held)


def learning(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that learn, by name."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)

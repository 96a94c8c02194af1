"""How much arithmetic this machine could do: what utilisation and estimates are held against."""

from __future__ import annotations

import time

import torch


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a matrix product here and now: the best of three. size: None for one that takes no time."""
    size = size or (8192 if device.type == "cuda" else 1024)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    seconds = min(_timed_product(matrix) for _ in range(4))  # the first one warms up
    return 2 * size**3 / seconds


def _timed_product(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    product = matrix @ matrix
    if product.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start

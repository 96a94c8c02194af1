"""This machine's arithmetic, which utilisation and estimates are held against, and its memory."""

from __future__ import annotations

import ctypes
import sys
import time

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


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


def check_device(name: str) -> None:
    """Raise ValueError where this machine has no device of that name (cpu, cuda, cuda:1 …)."""
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name in here:
        return
    if name.startswith("cpu:"):
        raise ValueError(f"device {name}: processors have no numbers; give cpu")
    try:
        torch.empty(1, device=name).item()  # whatever else PyTorch may know, such as mps
    except (
        RuntimeError,
        NotImplementedError,
        AssertionError,
    ) as error:  # the last: no CUDA in it
        raise ValueError(f"device {name}: not on this machine, which has {', '.join(here)}") from error


def keep_freed_memory() -> None:
    """Have what this process frees stay with it, for long work on a CPU in large tensors.

    glibc hands every freed block over 32 MB back to the system, which clears each page anew at the next
    request: a fifth of a training step of `small` where products are fast. Other
    systems' memory stays as it is.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # all from one heap,
        mallopt(_M_TRIM_THRESHOLD, -1)  # whose end never goes back

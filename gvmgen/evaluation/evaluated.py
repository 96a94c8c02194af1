"""CMR and TA of a system's music, with their control. t seconds, D what the evaluator reads of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from gvmgen.evaluation.agreement import pair_values, shuffled
from gvmgen.evaluation.config import BATCH_SIZE
from gvmgen.evaluation.evaluator import Evaluator, load_evaluator
from gvmgen.evaluation.seconds import make_pair

Read = tuple[np.ndarray, np.ndarray]  # a video and its music, float32 [t, D] each


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """By metric: a value for each video, and the mean with other videos' music."""

    items: dict[str, dict[str, float]]
    shuffled: dict[str, float]


def batch_size(numbers: Iterable[int]) -> int:
    """Pairs among which CMR and accuracy find partners: the same for systems with so many pairs each."""
    return min(BATCH_SIZE, *numbers)


def evaluate(folder: Path, read: Mapping[str, Read], size: int) -> Evaluated:
    """By the evaluator of a folder. size: pairs in a batch, at least 2: chance depends on it."""
    pairs = [make_pair(video, *map(torch.from_numpy, both)) for video, both in read.items()]
    model = _load(folder).model
    values, control = pair_values(model, pairs, size), pair_values(model, shuffled(pairs), size)
    return Evaluated(
        items={
            metric: dict(zip(read, map(float, of_pairs), strict=True)) for metric, of_pairs in values.items()
        },
        shuffled={metric: float(of_pairs.mean()) for metric, of_pairs in control.items()},
    )


def alignment(folder: Path, read: Read) -> np.ndarray:
    """a(v, m), float32 [t, t]: which second of music each second of video attends to."""
    return _load(folder).score(*map(torch.from_numpy, read)).alignment


@cache
def _load(folder: Path) -> Evaluator:
    return load_evaluator(folder)

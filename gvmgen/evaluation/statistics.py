"""Intervals and significance: of means over items by bootstrap, of distances between sets by halves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gvmgen.evaluation.extras import needed

CONFIDENCE = 0.95
_RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval; NaN where there is too little to tell."""

    value: float
    low: float
    high: float
    num: int  # items behind it


def mean_estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of one value an item, and its bootstrap interval (percentiles). NaN are items without a value."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Estimate(value=np.nan, low=np.nan, high=np.nan, num=0)
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(value=mean, low=np.nan, high=np.nan, num=1)
    low, high = np.quantile(_bootstrap_means(values, seed), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Estimate(value=mean, low=float(low), high=float(high), num=len(values))


def _bootstrap_means(values: np.ndarray, seed: int) -> np.ndarray:
    """[resamples]; a part at a time, for memory."""
    rng = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // len(values))
    parts = [
        values[rng.integers(0, len(values), (min(at_once, _RESAMPLES - done), len(values)))].mean(axis=1)
        for done in range(0, _RESAMPLES, at_once)
    ]
    return np.concatenate(parts)


def halves(num_items: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Random halves of 0 … num_items - 1, sorted, drawn without putting back."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(num_items)[: num_items // 2]) for _ in range(count)]


def set_estimate(value: float, of_halves: Sequence[float], num: int) -> Estimate:
    """The interval of a distance between sets, from its values on random halves of the items.

    A bootstrap repeats items, which makes covariances smaller and distances larger: its interval would lie
    beside the value. Halves drawn without putting back have no item twice, and as n/2 of n are left out,
    their spread is the standard error of the whole (the delete-half jackknife: Shao and Wu 1989).
    """
    error = float(np.std(of_halves, ddof=1)) if len(of_halves) > 1 else float("nan")
    spread = float(_student(num).ppf((1 + CONFIDENCE) / 2)) * error
    return Estimate(value=value, low=value - spread, high=value + spread, num=num)


def paired_p_of_halves(a: Sequence[float], b: Sequence[float], difference: float, num: int) -> float:
    """Two-sided p of a difference between two systems' distances; both measured on the same halves of num."""
    error = float(np.std(np.subtract(a, b), ddof=1)) if len(a) > 1 else float("nan")
    if not error > 0:
        return float("nan")
    return float(2 * _student(num).sf(abs(difference) / error))


def _student(num: int) -> Any:
    """Student's t: few items know little of their own spread, however many halves are drawn of them."""
    return needed("scipy.stats").t(max(1, num - 1))


def paired_p(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test on the mean difference: signs flipped at random.

    a, b: one value an item, NaN where there is none. NaN with fewer than two pairs.
    """
    difference = (a - b)[~np.isnan(a - b)]
    if len(difference) < 2:
        return float("nan")
    if not difference.any():
        return 1.0
    sums = np.concatenate([np.abs(signs @ difference) for signs in _signs(len(difference), seed)])
    as_far = np.count_nonzero(sums >= abs(difference.sum()) * (1 - 1e-12))
    is_exact = len(sums) == 2 ** len(difference)
    return float(as_far / len(sums) if is_exact else (as_far + 1) / (len(sums) + 1))


def _signs(num: int, seed: int) -> Iterator[np.ndarray]:
    """-1 and 1, float64 [rows, num]: every way to set them where that is no more work, else random ones."""
    if 2**num <= _RESAMPLES:
        yield 2.0 * (np.arange(2**num)[:, None] >> np.arange(num) & 1) - 1
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // num)
    for done in range(0, _RESAMPLES, at_once):
        yield 2.0 * rng.integers(0, 2, (min(at_once, _RESAMPLES - done), num), np.int8) - 1


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's, over all comparisons of a table; NaN stay."""
    p = np.array(p_values, float)
    known = ~np.isnan(p)
    if known.any():
        p[known] = needed("scipy.stats").false_discovery_control(p[known])
    return [float(value) for value in p]


def finite(value: Any) -> Any:
    """For JSON: None for every number that is none, in dicts too."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

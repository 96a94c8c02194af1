"""How far a set of music is from another, by embeddings of their windows or their pieces.

R rows (windows of 1 s or more), D width of an embedding, I items (pieces of music). float64 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

KAD_SCALE = 100  # Chung et al. 2025, arXiv 2502.15602: makes the usual values readable
NEAREST = 5  # neighbours of density and coverage; Naeem et al. 2020, arXiv 2002.09797
_MOST_FOR_MEDIAN = 3000  # rows whose pairwise distances give the kernel's width
_PAIRS_AT_ONCE = 500_000  # distances in memory: 4 MB, which caches hold
_SIZES = 10  # of the extrapolation
_LEAST_ITEMS = 5  # to extrapolate from


@dataclass(frozen=True, eq=False)
class EmbeddedSet:
    """The embeddings of a set of music: all rows, one item after another."""

    rows: np.ndarray  # float64 [R, D]
    starts: np.ndarray  # int64 [I]: where each item's rows begin

    @classmethod
    def of(cls, items: Sequence[np.ndarray]) -> Self:
        """items: one [rows, D] each, none of them empty."""
        sizes = [len(item) for item in items]
        return cls(np.concatenate(items).astype(np.float64), np.cumsum([0, *sizes[:-1]]))

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 [I]: rows of each item."""
        return np.diff(self.starts, append=len(self.rows))

    @cached_property
    def means(self) -> np.ndarray:
        """[I, D]: one vector an item."""
        return np.add.reduceat(self.rows, self.starts) / self.sizes[:, None]

    def some(self, items: np.ndarray) -> np.ndarray:
        """The rows [R, D] of these items."""
        chosen = np.zeros(len(self), bool)
        chosen[items] = True
        return self.rows[np.repeat(chosen, self.sizes)]

    def part(self, items: np.ndarray) -> Self:
        """These items alone. items: sorted."""
        sizes = self.sizes[items]
        return type(self)(self.some(items), np.cumsum(sizes) - sizes)


class Gaussian:
    """Mean and covariance of rows [R, D]."""

    def __init__(self, rows: np.ndarray) -> None:
        self.mean = rows.mean(axis=0)
        self.covariance = np.atleast_2d(np.cov(rows, rowvar=False))

    @cached_property
    def root(self) -> np.ndarray:
        """The covariance's symmetric square root [D, D]."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared: |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½).

    The trace of the last is that of (Σa^½ Σb Σa^½)^½, symmetric: no complex roots to throw away.
    """
    values = np.linalg.eigvalsh(a.root @ b.covariance @ a.root)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(distance)


@dataclass(frozen=True, kw_only=True)
class Fad:
    """A Fréchet audio distance and what it would be with infinitely much music."""

    value: float
    at_infinity: float  # NaN with too few items
    sizes: tuple[int, ...]  # items of each point of the line
    points: tuple[float, ...]


def fad(reference: Gaussian, found: EmbeddedSet, rng: np.random.Generator, num_sizes: int = _SIZES) -> Fad:
    """The Fréchet audio distance (Kilgour et al. 2019), and its limit (Gui et al. 2024, arXiv 2311.01616).

    Too few samples make a covariance too small, and the distance too large by about 1 / N. So it is measured
    on random parts of growing size, and the line over 1 / N gives the limit. We draw whole pieces, as the
    windows of one are alike, and without putting back, as a piece twice is no second piece.
    """
    value = frechet_distance(reference, Gaussian(found.rows))
    if len(found) < _LEAST_ITEMS:
        return Fad(value=value, at_infinity=float("nan"), sizes=(), points=())
    sizes = np.unique(np.linspace(max(2, len(found) // 4), len(found), num_sizes).round().astype(int))
    points = [
        frechet_distance(reference, Gaussian(found.some(rng.permutation(len(found))[:size])))
        for size in sizes
    ]
    _, limit = np.polyfit(1 / sizes, points, 1)
    return Fad(value=value, at_infinity=float(limit), sizes=tuple(sizes.tolist()), points=tuple(points))


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Kernel values between all rows of two sets, added up by pair of items: any part's KAD follows."""

    sums: np.ndarray  # [I, J]
    rows: np.ndarray  # [I]: of each item of the first set
    columns: np.ndarray  # [J]

    @classmethod
    def between(cls, a: EmbeddedSet, b: EmbeddedSet, width: float) -> Self:
        """A Gaussian kernel of this width. Some rows at a time: memory does not grow with R²."""
        sums = np.zeros((len(a), len(b)))
        item_of_row = np.repeat(np.arange(len(a)), a.sizes)
        for first, squared in _squared_distances(a.rows, b.rows):
            kernel = np.exp(squared * (-0.5 / width**2), out=squared)
            by_item = np.add.reduceat(kernel, b.starts, axis=1)
            np.add.at(sums, item_of_row[first : first + len(kernel)], by_item)
        return cls(sums, a.sizes, b.sizes)

    def mean(self, items: np.ndarray, others: np.ndarray) -> float:
        """Of the pairs of a row of `items` and one of `others`."""
        pairs = self.rows[items].sum() * self.columns[others].sum()
        return float(self.sums[np.ix_(items, others)].sum() / pairs)

    def mean_within(self, items: np.ndarray) -> float:
        """Of the pairs of two different rows of `items`, the two sets being the same."""
        num_rows = int(self.rows[items].sum())
        total = self.sums[np.ix_(items, items)].sum() - num_rows  # a row with itself gives 1
        return float(total / (num_rows * (num_rows - 1)))


def kernel_width(reference: np.ndarray) -> float:
    """The median distance between rows [R, D]; of 3000 evenly spaced ones where there are more."""
    rows = reference[:: -(-len(reference) // _MOST_FOR_MEDIAN)]
    above = np.concatenate(
        [
            squared[np.arange(len(rows)) > first + np.arange(len(squared))[:, None]]
            for first, squared in _squared_distances(rows, rows)
        ]
    )
    return float(np.sqrt(max(np.median(above), 1e-12)))


def kad(reference: KernelSums, cross: KernelSums, found: KernelSums, items: np.ndarray) -> float:
    """The kernel audio distance (arXiv 2502.15602) of some of the found items: 100 MMD², unbiased.

    reference, found: sums within a set; cross: found by reference. Below 0 by chance where both are alike.
    """
    everything = np.arange(len(reference.rows))
    within = reference.mean_within(everything) + found.mean_within(items)
    return KAD_SCALE * (within - 2 * cross.mean(items, everything))


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Per item, so that means have intervals: of the found precision and density, else of the reference."""

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


def fidelity(reference: np.ndarray, found: np.ndarray, nearest: int = NEAREST) -> Fidelity | None:
    """Of one vector an item, [I, D] and [J, D]. None with no more items than neighbours.

    Precision, recall: Kynkäänniemi et al. 2019; density, coverage: Naeem et al. 2020. Windows of a piece lie
    beside each other, so that they would be their own neighbours: hence one vector an item.
    """
    if min(len(reference), len(found)) <= nearest:
        return None
    radius, found_radius = _radii(reference, nearest), _radii(found, nearest)
    distances = np.concatenate([np.sqrt(d) for _, d in _squared_distances(reference, found)])  # [I, J]
    inside = distances < radius[:, None]
    return Fidelity(
        precision=inside.any(axis=0).astype(float),
        recall=(distances < found_radius[None]).any(axis=1).astype(float),
        density=inside.sum(axis=0) / nearest,
        coverage=(distances.min(axis=1) < radius).astype(float),
    )


def _radii(points: np.ndarray, nearest: int) -> np.ndarray:
    """[I]: each point's distance to its k-th neighbour, itself not counted."""
    parts = [np.partition(d, nearest, axis=1)[:, nearest] for _, d in _squared_distances(points, points)]
    return np.sqrt(np.concatenate(parts))


def diversity(vectors: np.ndarray) -> np.ndarray:
    """Each one's mean cosine distance, 0 … 2, to all others; 0 where all are alike. [I, D] -> [I], I >= 2."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    others = unit.sum(axis=0) - unit
    return np.maximum(0.0, 1 - (unit * others).sum(axis=1) / (len(unit) - 1))


def kl_divergence(reference: np.ndarray, found: np.ndarray) -> float:
    """KL(reference ‖ found) of class probabilities [C], with audiocraft's 1e-6 under the logarithm."""
    return float(np.sum(reference * (np.log(np.maximum(reference, 1e-30)) - np.log(found + 1e-6))))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, [rows, len(b)]), some rows of a at a time; nothing below 0."""
    norms = np.square(b).sum(axis=1)
    at_once = max(1, _PAIRS_AT_ONCE // len(b))
    for first in range(0, len(a), at_once):
        part = a[first : first + at_once]
        squared = np.square(part).sum(axis=1)[:, None] + norms - 2 * part @ b.T
        yield first, np.maximum(squared, 0, out=squared)

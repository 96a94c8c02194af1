"""Intervals hold the truth as often as they say, and significance is that of the textbooks."""

from __future__ import annotations

import numpy as np
import pytest

from gvmgen.evaluation.distribution import EmbeddedSet, Gaussian, frechet_distance
from gvmgen.evaluation.statistics import (
    adjusted,
    halves,
    mean_estimate,
    paired_p,
    paired_p_of_halves,
    set_estimate,
)

stats = pytest.importorskip("scipy.stats")


def test_the_bootstrap_agrees_with_scipys() -> None:
    values = np.random.default_rng(0).normal(3, 2, 60)
    found = mean_estimate(values)
    wanted = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.05)


def test_items_without_a_value_are_not_counted() -> None:
    found = mean_estimate(np.array([1.0, np.nan, 3.0]))
    assert (found.value, found.num) == (2.0, 2)
    assert mean_estimate(np.array([np.nan])).num == 0
    assert np.isnan(mean_estimate(np.array([5.0])).low)


def test_halves_hold_half_the_items_each_once() -> None:
    parts = halves(11, count=4)
    assert [len(set(part)) for part in parts] == [5] * 4
    assert len({tuple(part) for part in parts}) > 1


def test_the_spread_of_halves_is_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = set_estimate(values.mean(), [values[part].mean() for part in halves(400, 2000)], 400)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=0.1)


def test_a_bootstrap_of_fad_would_miss_its_own_value_and_halves_do_not() -> None:
    """Why there are two kinds of interval."""
    rng = np.random.default_rng(2)
    reference = Gaussian(rng.normal(size=(5000, 12)))
    found = EmbeddedSet.of(list(rng.normal(size=(60, 1, 12))))
    value = frechet_distance(reference, Gaussian(found.rows))
    repeated = [
        frechet_distance(reference, Gaussian(found.rows[rng.integers(0, 60, 60)])) for _ in range(200)
    ]
    assert np.quantile(repeated, 0.025) > value
    parts = [frechet_distance(reference, Gaussian(found.some(part))) for part in halves(60, 50)]
    interval = set_estimate(value, parts, 60)
    assert interval.low < value < interval.high


def test_a_true_difference_is_significant_and_none_is_not() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 40)  # how hard an item is, for both systems
    a, b, c = (hard + rng.normal(size=40) + shift for shift in (0, 1.5, 0))
    assert paired_p(a, b) < 0.001
    assert paired_p(a, c) > 0.05
    assert paired_p(a, a) == 1
    assert paired_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)


@pytest.mark.parametrize("num", [12, 300])
def test_the_permutation_test_agrees_with_scipys(num: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, num)) + np.array([[0.1], [0.0]])
    wanted = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    assert paired_p(a, b) == pytest.approx(wanted.pvalue, abs=1e-9 if num == 12 else 0.02)


def test_few_pairs_are_counted_exactly() -> None:
    assert paired_p(np.array([1.0, 2, 3, 4]), np.zeros(4)) == pytest.approx(2 / 16)
    assert np.isnan(paired_p(np.array([1.0]), np.zeros(1)))


def test_two_systems_on_the_same_halves_are_compared_by_their_difference() -> None:
    common = np.random.default_rng(4).normal(0, 10, 30)
    a, b = common + np.linspace(0, 0.1, 30), common + 1
    assert paired_p_of_halves(a.tolist(), b.tolist(), difference=1.0, num=30) < 1e-6
    assert paired_p_of_halves(a.tolist(), b.tolist(), difference=0.01, num=30) > 0.05
    assert np.isnan(paired_p_of_halves([1.0, 2.0], [1.0, 2.0], difference=0.0, num=30))


def test_few_pieces_prove_less_than_many() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 40)).tolist()
    few, many = (paired_p_of_halves(a, b, difference=5.0, num=num) for num in (4, 400))
    assert many < 0.001 < 0.01 < few
    few, many = (set_estimate(0.0, a, num) for num in (4, 400))
    assert few.high > 1.5 * many.high


def test_many_comparisons_are_adjusted_and_gaps_stay() -> None:
    found = adjusted([0.01, float("nan"), 0.04, 0.03])
    assert np.isnan(found[1])
    assert [found[i] for i in (0, 2, 3)] == pytest.approx([0.03, 0.04, 0.04])
    assert np.isnan(adjusted([float("nan")])[0])

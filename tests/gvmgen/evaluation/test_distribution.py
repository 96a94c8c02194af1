"""Known answers, the reference packages' numbers on the same embeddings, and worse where it is worse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gvmgen.evaluation.distribution import (
    KAD_SCALE,
    EmbeddedSet,
    Gaussian,
    KernelSums,
    diversity,
    fad,
    fidelity,
    frechet_distance,
    kad,
    kernel_width,
    kl_divergence,
)

Rows = np.ndarray


def correlated(num_rows: int, dim: int, seed: int, shift: float = 0.0) -> Rows:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, dim)) @ np.random.default_rng(1).normal(size=(dim, dim)) + shift


def in_items(rows: Rows, num_items: int = 40) -> EmbeddedSet:
    return EmbeddedSet.of(np.array_split(rows, num_items))


def kad_of(reference: EmbeddedSet, found: EmbeddedSet, items: np.ndarray | None = None) -> float:
    width = kernel_width(reference.rows)
    sums = (
        KernelSums.between(reference, reference, width),
        KernelSums.between(found, reference, width),
        KernelSums.between(found, found, width),
    )
    return kad(*sums, np.arange(len(found)) if items is None else items)


def of_known_moments(mean: np.ndarray, deviations: np.ndarray) -> Gaussian:
    """Rows whose sample mean and covariance are exactly these."""
    dim = len(mean)
    points = np.sqrt(dim - 0.5) * np.concatenate([np.eye(dim), -np.eye(dim)])  # covariance: the identity
    return Gaussian(points * deviations + mean)


def test_fad_of_two_gaussians_is_the_closed_form() -> None:
    mean, deviations = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 3.0])
    found = frechet_distance(of_known_moments(np.zeros(3), np.ones(3)), of_known_moments(mean, deviations))
    assert found == pytest.approx(np.square(mean).sum() + np.square(deviations - 1).sum(), abs=1e-9)


def test_identical_sets_are_no_distance_apart() -> None:
    rows = correlated(800, 16, seed=0)
    assert frechet_distance(Gaussian(rows), Gaussian(rows.copy())) == pytest.approx(0, abs=1e-6)
    assert abs(kad_of(in_items(rows), in_items(rows))) < 0.5  # unbiased, so not exactly 0
    same = fidelity(rows, rows)
    assert same is not None
    assert same.precision.mean() == same.recall.mean() == same.coverage.mean() == 1


def test_fad_agrees_with_the_square_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = Gaussian(correlated(500, 24, seed=2)), Gaussian(correlated(400, 24, seed=3, shift=0.3))
    root = linalg.sqrtm(a.covariance @ b.covariance)
    wanted = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(wanted, abs=1e-6)


def test_kad_agrees_with_the_kernels_of_scikit_learn() -> None:
    """Its kernel matrices, summed by the formula of the publication."""
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    a, b = correlated(300, 8, seed=4), correlated(200, 8, seed=5, shift=0.5)
    gamma = 1 / (2 * kernel_width(a) ** 2)
    within_a, within_b = (pairwise.rbf_kernel(x, gamma=gamma) for x in (a, b))
    unbiased = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in (within_a, within_b)]
    wanted = KAD_SCALE * (sum(unbiased) - 2 * pairwise.rbf_kernel(a, b, gamma=gamma).mean())
    assert kad_of(in_items(a, 7), in_items(b, 13)) == pytest.approx(wanted, abs=1e-6)


def test_the_kad_of_some_items_is_that_of_their_rows_alone() -> None:
    reference, found = in_items(correlated(300, 8, seed=4)), in_items(correlated(200, 8, seed=5), 10)
    half = np.array([1, 3, 4, 8, 9])
    alone = kad_of(reference, found.part(half))
    assert kad_of(reference, found, half) == pytest.approx(alone, abs=1e-9)


def test_the_kernel_is_as_wide_as_the_median_distance() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    rows = correlated(300, 8, seed=6)
    assert kernel_width(rows) == pytest.approx(np.median(distance.pdist(rows)), rel=1e-9)


def test_precision_recall_density_coverage_agree_with_prdc(capsys: pytest.CaptureFixture[str]) -> None:
    prdc = pytest.importorskip("prdc")
    a, b = correlated(1500, 8, seed=7), correlated(90, 8, seed=8, shift=0.7)
    found = fidelity(a, b, nearest=5)
    assert found is not None
    for name, wanted in prdc.compute_prdc(a, b, 5).items():
        assert getattr(found, name).mean() == pytest.approx(wanted, abs=1e-6), name


def test_kld_is_torchs_with_the_floor_that_audiocraft_adds() -> None:
    import torch

    rng = np.random.default_rng(9)
    reference, found = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(20))
    logs = torch.from_numpy(found + 1e-6).log()
    wanted = torch.nn.functional.kl_div(logs, torch.from_numpy(reference), reduction="sum")
    assert kl_divergence(reference, found) == pytest.approx(float(wanted), abs=1e-6)
    assert kl_divergence(reference, reference) == pytest.approx(0, abs=1e-4)


def test_the_limit_of_fad_is_free_of_the_bias_of_small_sets() -> None:
    """Both sets are of one kind: the true distance is 0, and few rows make it seem larger."""
    reference = Gaussian(correlated(20_000, 16, seed=10))
    sets = [in_items(correlated(200, 16, seed=seed), 100) for seed in range(20, 28)]
    found = [fad(reference, each, np.random.default_rng(0)) for each in sets]
    assert found[0].sizes[-1] == 100
    assert found[0].points[-1] == pytest.approx(found[0].value)
    assert abs(np.mean([f.at_infinity for f in found])) < np.mean([f.value for f in found]) / 3


def test_too_few_items_have_no_limit() -> None:
    found = fad(Gaussian(correlated(90, 4, 0)), in_items(correlated(80, 4, 1), 4), np.random.default_rng(0))
    assert found.value > 0
    assert np.isnan(found.at_infinity)


def test_fewer_items_than_neighbours_have_no_coverage() -> None:
    assert fidelity(correlated(5, 4, 0), correlated(50, 4, 1)) is None


WORSE: dict[str, Callable[[Rows, float], Rows]] = {
    "noise": lambda rows, much: rows + much * np.random.default_rng(0).normal(size=rows.shape) * rows.std(),
    "shift": lambda rows, much: rows + much * rows.std(),
    "collapse": lambda rows, much: rows[np.arange(len(rows)) % max(1, round(len(rows) * (1 - much)))],
}


@pytest.mark.parametrize("harm", WORSE)
def test_fad_and_kad_rise_as_the_music_gets_worse(harm: str) -> None:
    reference, fresh = correlated(1200, 8, seed=12), correlated(400, 8, seed=13)
    grades = [WORSE[harm](fresh, much) for much in (0.0, 0.9, 0.98)]
    fads = [frechet_distance(Gaussian(reference), Gaussian(rows)) for rows in grades]
    kads = [kad_of(in_items(reference), in_items(rows)) for rows in grades]
    assert fads == sorted(fads)
    assert kads == sorted(kads)
    assert fads[1] > 1.5 * fads[0]


def test_mode_collapse_lowers_coverage_recall_and_diversity_but_not_precision() -> None:
    reference, fresh = correlated(300, 8, seed=14), correlated(300, 8, seed=15)
    collapsed = fresh[np.arange(300) % 3] + 1e-3 * correlated(300, 8, seed=16)
    good, bad = fidelity(reference, fresh), fidelity(reference, collapsed)
    assert good is not None
    assert bad is not None
    assert good.coverage.mean() > 0.8 > 0.2 > bad.coverage.mean()
    assert bad.recall.mean() < 0.1 < good.recall.mean()
    assert bad.precision.mean() > 0.6
    assert diversity(collapsed).mean() < diversity(fresh).mean()


def test_one_track_for_all_videos_has_no_diversity() -> None:
    assert diversity(np.ones((5, 3))).tolist() == pytest.approx([0] * 5, abs=1e-9)
    assert diversity(np.array([[1.0, 0], [-1, 0]])).tolist() == [2, 2]


def test_noise_on_the_found_music_lowers_precision_and_density() -> None:
    reference, fresh = correlated(300, 8, seed=17), correlated(300, 8, seed=18)
    good, bad = fidelity(reference, fresh), fidelity(reference, WORSE["noise"](fresh, 1.5))
    assert good is not None
    assert bad is not None
    assert bad.precision.mean() < good.precision.mean()
    assert bad.density.mean() < good.density.mean()

"""Nearest-neighbour metrics against their definitions."""

import numpy as np
import pytest

from experiments.evaluation.manifold import manifold_metrics


def brute_force(samples, data, k_precision, k_density):
    def to(x, y):
        return np.linalg.norm(x[:, None] - y[None], axis=-1)

    def radius(x, k):
        return np.sort(to(x, x), axis=1)[:, k]

    near = to(samples, data)
    return (
        (near <= radius(data, k_precision)).any(1).mean(),
        (near <= radius(samples, k_precision)[:, None]).any(0).mean(),
        (near <= radius(data, k_density)).sum(1).mean() / k_density,
        (near.min(0) <= radius(data, k_density)).mean(),
    )


def test_manifold_metrics_follow_their_definitions():
    # More examples than one block of rows.
    rng = np.random.default_rng(0)
    samples, data = 0.7 * rng.normal(size=(150, 4)) + 0.5, rng.normal(size=(1_100, 4))
    found = manifold_metrics(samples, data)
    assert tuple(found) == pytest.approx(brute_force(samples, data, 3, 5))


def test_equal_distances_of_discrete_features_are_equal():
    samples, data = np.random.default_rng(0).integers(0, 2, (2, 300, 8)).astype(float)
    found = manifold_metrics(samples, data)
    # The test subtracts before it squares, so integers stay exact.
    assert tuple(found) == pytest.approx(brute_force(samples, data, 3, 5))


@pytest.mark.parametrize("is_sample", [True, False])
def test_one_feature_that_is_not_finite_makes_every_manifold_metric_nan(is_sample):
    samples, data = np.random.default_rng(0).normal(size=(2, 50, 2))
    (samples if is_sample else data)[0, 1] = np.nan
    assert np.isnan(manifold_metrics(samples, data)).all()


def test_equal_sets_have_full_precision_recall_and_coverage_and_far_ones_none():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500, 3))
    assert manifold_metrics(x, x)[:2] == (1.0, 1.0)
    assert manifold_metrics(x, y).density == pytest.approx(1.0, abs=0.15)
    assert tuple(manifold_metrics(x + 100.0, y)) == (0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"at least 6 points and .* got \(5, 3\)"):
        manifold_metrics(x[:5], y)

"""Optimal-transport distances and nearest-neighbour metrics against closed forms."""

import numpy as np
import pytest

from fdrl_jax import metrics

SHIFT = np.array([3.0, -4.0])


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(120, 2))


def test_the_transport_distance_of_a_shift_is_its_length(points):
    sliced = metrics.sliced_wasserstein(points + SHIFT, points, num_projections=500)
    assert sliced == pytest.approx(5.0 / np.sqrt(2.0), rel=0.05)
    divergence = metrics.sinkhorn_divergence(points + SHIFT, points, epsilon=0.5)
    assert divergence == pytest.approx(25.0, rel=1e-3)


def test_the_transport_distance_to_itself_is_zero_also_far_from_the_origin(points):
    far = points + 1e3
    assert metrics.sliced_wasserstein(far, far) == pytest.approx(0.0, abs=1e-5)
    assert metrics.sinkhorn_divergence(far, far, epsilon=0.5) == pytest.approx(0.0, abs=1e-4)


def test_transport_scales_with_the_data_and_accepts_unequal_numbers_of_points(points):
    other = 0.5 * points[:80] + 1.0
    small = metrics.sliced_wasserstein(other, points)
    assert metrics.sliced_wasserstein(3 * other, 3 * points) == pytest.approx(3 * small, rel=1e-4)
    small = metrics.sinkhorn_divergence(other, points, epsilon=0.3)
    large = metrics.sinkhorn_divergence(3 * other, 3 * points, epsilon=9 * 0.3)
    assert large == pytest.approx(9 * small, rel=1e-3)


def test_too_few_iterations_are_an_error_and_not_a_wrong_number(points):
    with pytest.raises(ValueError, match="did not converge in 10 iterations"):
        metrics.sinkhorn_divergence(points + SHIFT, points, epsilon=1e-3, max_iterations=10)


@pytest.mark.parametrize("distance", [metrics.sliced_wasserstein, metrics.sinkhorn_divergence])
def test_transport_refuses_points_of_unequal_dimensions(distance):
    options = {"epsilon": 1.0} if distance is metrics.sinkhorn_divergence else {}
    with pytest.raises(ValueError, match=r"got \(5, 2\) and \(5, 3\)"):
        distance(np.zeros((5, 2)), np.zeros((5, 3)), **options)


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
    found = metrics.manifold_metrics(samples, data)
    assert tuple(found) == pytest.approx(brute_force(samples, data, 3, 5))


def test_equal_distances_of_discrete_features_are_equal():
    samples, data = np.random.default_rng(0).integers(0, 2, (2, 300, 8)).astype(float)
    found = metrics.manifold_metrics(samples, data)
    # The test subtracts before it squares, so integers stay exact.
    assert tuple(found) == pytest.approx(brute_force(samples, data, 3, 5))


@pytest.mark.parametrize("is_sample", [True, False])
def test_one_feature_that_is_not_finite_makes_every_manifold_metric_nan(is_sample):
    samples, data = np.random.default_rng(0).normal(size=(2, 50, 2))
    (samples if is_sample else data)[0, 1] = np.nan
    assert np.isnan(metrics.manifold_metrics(samples, data)).all()


def test_equal_sets_have_full_precision_recall_and_coverage_and_far_ones_none():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 500, 3))
    assert metrics.manifold_metrics(x, x)[:2] == (1.0, 1.0)
    assert metrics.manifold_metrics(x, y).density == pytest.approx(1.0, abs=0.15)
    assert tuple(metrics.manifold_metrics(x + 100.0, y)) == (0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"at least 6 points and .* got \(5, 3\)"):
        metrics.manifold_metrics(x[:5], y)

"""Distances between samples, against closed forms and their stated bias."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fdrl_jax import metrics

SIGMAS = 4.0  # Allowed sampling error, in standard deviations of the mean over repeats.


# More points than one block of rows, with few features and with many.
@pytest.mark.parametrize(("n", "m", "size"), [(1_203, 30, 2), (1_100, 600, 400)])
def test_energy_distances_and_their_ratio_follow_the_definitions(n, m, size):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, size)), 0.1 + rng.normal(size=(m, size))
    x[:20] = y[:20]  # Coincident points have a distance of exactly 0.
    cross, of_x, of_y = 2.0 * cdist(x, y).mean(), cdist(x, x).sum(), cdist(y, y).sum()
    unbiased = cross - of_x / (n * (n - 1)) - of_y / (m * (m - 1))
    biased = cross - of_x / n**2 - of_y / m**2
    images = (array.reshape(len(array), -1, 2, 1) for array in (x, y))  # Vectors of pixels.
    assert metrics.energy_distance(*images) == pytest.approx(unbiased, rel=1e-9)
    assert metrics.energy_distance(x, y, unbiased=False) == pytest.approx(biased, rel=1e-9)
    expected = biased / (of_y / (m * (m - 1)) * (1 / n + 1 / m))
    assert metrics.energy_ratio(x, y).value == pytest.approx(expected, rel=1e-9)
    for value in (np.nan, np.inf):
        x[3, 0] = value
        with np.errstate(invalid="ignore"):  # Of the difference of two infinite numbers.
            for distance in (metrics.energy_distance, metrics.frechet_distance):
                assert np.isnan([distance(x, y), distance(y, x)]).all()


@pytest.mark.parametrize(
    ("x", "y"), [((1, 2), (5, 2)), ((5, 2), (1, 2)), ((5, 2), (5, 3)), ((9, 2, 3), (9, 3, 2))]
)
def test_distances_need_two_points_and_equal_features(x, y):
    for metric in (metrics.energy_distance, metrics.energy_ratio, metrics.frechet_distance):
        with pytest.raises(ValueError, match="at least 2 points and the same features") as error:
            metric(np.zeros(x), np.zeros(y))
        assert f"got {x} and {y}" in str(error.value)


def test_true_data_have_a_mean_energy_ratio_of_1_within_its_quantiles():
    def ratio(rng):
        return metrics.energy_ratio(rng.normal(size=(300, 2)), rng.normal(size=(200, 2)))

    ratios = [ratio(np.random.default_rng(seed)) for seed in range(100)]
    values = np.array([ratio.value for ratio in ratios])
    assert values.mean() == pytest.approx(1.0, abs=SIGMAS * values.std() / np.sqrt(len(values)))
    inside = np.mean([ratio.low <= ratio.value <= ratio.high for ratio in ratios])
    assert inside == pytest.approx(0.9, abs=SIGMAS * np.sqrt(0.9 * 0.1 / len(ratios)))


def test_the_energy_ratio_grows_for_samples_of_another_distribution_and_has_no_unit():
    rng = np.random.default_rng(0)
    x, y = 0.5 + rng.normal(size=(500, 3)), rng.normal(size=(500, 3))
    ratio = metrics.energy_ratio(x, y)
    assert ratio.value > 5.0 * ratio.high
    np.testing.assert_allclose(metrics.energy_ratio(9.0 * x, 9.0 * y), ratio, rtol=1e-9)
    with pytest.raises(ValueError, match="all points of the data coincide"):
        metrics.energy_ratio(x, np.ones((5, 3)))


def with_moments(mean, covariance, num=50, seed=0):
    """Points whose sample mean and (unbiased) sample covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(num, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    values, vectors = np.linalg.eigh(covariance)
    return mean + x @ (vectors * np.sqrt(np.clip(values, 0.0, None))).T


ROTATION, A = np.array([[0.6, -0.8], [0.8, 0.6]]), np.array([[2.0, 1.0], [1.0, 2.0]])
B = np.diag([1.0, 4.0])


@pytest.mark.parametrize(
    ("cov_x", "cov_y", "expected"),
    [
        (np.eye(2), np.eye(2), 0.0),
        (4.0 * np.eye(2), np.eye(2), 2.0),
        # Commuting: the sum of (sqrt a - sqrt b)^2 over common directions.
        (ROTATION @ np.diag([9.0, 1.0]) @ ROTATION.T, ROTATION @ B @ ROTATION.T, 4.0 + 1.0),
        # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) of a 2 x 2 matrix, M = A B.
        (A, B, 4.0 + 5.0 - 2.0 * np.sqrt(10.0 + 2.0 * np.sqrt(12.0))),
        # Singular: along one line, and no spread at all.
        (np.diag([4.0, 0.0]), np.diag([1.0, 0.0]), 1.0),
        (np.diag([4.0, 0.0]), np.diag([0.0, 1.0]), 5.0),
        (np.zeros((2, 2)), A, 4.0),
    ],
)
def test_the_frechet_distance_is_the_closed_form_between_gaussians(cov_x, cov_y, expected):
    x = with_moments(np.array([1.0, 2.0]), cov_x)
    y = with_moments(np.array([1.0, -1.0]), cov_y, num=80, seed=1)
    assert metrics.frechet_distance(x, y) == pytest.approx(9.0 + expected, abs=1e-6)
    assert metrics.frechet_distance(y, x) == pytest.approx(9.0 + expected, abs=1e-6)


def test_the_frechet_distance_works_on_the_line_and_with_fewer_examples_than_features():
    x, y = with_moments(np.zeros(1), 9 * np.eye(1)), with_moments(np.ones(1), 4 * np.eye(1))
    assert metrics.frechet_distance(x, y) == pytest.approx(1.0 + (3.0 - 2.0) ** 2)
    x = np.random.default_rng(0).normal(size=(10, 40))
    assert metrics.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (300, 9, 7, 3)])
def test_random_filters_give_each_image_64_features_independently_of_the_others(shape):
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    images[0, 0, 0] = np.nan
    features = metrics.random_conv_features(images)
    assert features.shape == (shape[0], 64)
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1:]).all()
    others = metrics.random_conv_features(images[2:])
    np.testing.assert_allclose(features[2:], others, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"got \(2, 2, 1\)"):
        metrics.random_conv_features(np.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match=r"got uint8: x / 127.5 - 1 maps bytes"):
        metrics.random_conv_features(np.zeros(shape, np.uint8))

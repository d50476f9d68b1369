"""Errors of an estimated density ratio, against closed forms of Gaussians."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from experiments.data.built_in import gaussians8, gaussians25, swissroll
from experiments.evaluation import log_ratio as metrics

GAP = np.array([0.8, -0.3])


def gaussians(num=20_000, seed=0):
    """Samples of q = N(GAP, I) and p = N(0, I), and their log-ratio log q/p."""
    rng = np.random.default_rng(seed)
    q, p = (mean + rng.normal(size=(num, 2)) for mean in (GAP, np.zeros(2)))
    return q, p, lambda x: x @ GAP - GAP @ GAP / 2


def test_the_true_log_ratio_has_no_error():
    q, p, log_ratio = gaussians()
    true_kl = np.mean(log_ratio(q))
    error = metrics.log_ratio_kl(true_kl, log_ratio(q), log_ratio(p))
    assert error == pytest.approx(0.0, abs=0.03)  # E_p[r] of a sample is not quite 1.


@pytest.mark.parametrize("offset", [-1.0, 0.5, 2.0])
def test_a_constant_offset_gives_the_divergence_of_unnormalised_densities(offset):
    # KL(q || e^c q) of unnormalised densities is e^c - 1 - c.
    q, p, log_ratio = gaussians()
    true_kl = np.mean(log_ratio(q))
    error = metrics.log_ratio_kl(true_kl, log_ratio(q) + offset, log_ratio(p) + offset)
    assert error == pytest.approx(np.exp(offset) - 1.0 - offset, abs=0.03 * np.exp(offset))


def test_the_ratio_of_another_gaussian_gives_their_divergence():
    # An estimate r = q'/p with q' = N(0, I) = p: log r = 0, and KL(q || q') = |GAP|^2 / 2.
    q, p, _ = gaussians()
    kl = metrics.log_ratio_kl(GAP @ GAP / 2, np.zeros(len(q)), np.zeros(len(p)))
    assert kl == pytest.approx(GAP @ GAP / 2)
    estimated = metrics.kl_to_density(q, multivariate_normal(np.zeros(2)).logpdf(q))
    assert estimated == pytest.approx(GAP @ GAP / 2, abs=0.03)


def test_the_entropy_of_samples_is_that_of_their_density():
    rng = np.random.default_rng(0)
    normal = 0.1 * rng.normal(size=(20_000, 2))
    assert metrics.entropy(normal) == pytest.approx(np.log(2 * np.pi * np.e * 0.01), abs=0.03)
    assert metrics.entropy(3.0 * rng.uniform(size=20_000)) == pytest.approx(np.log(3.0), abs=0.03)


def test_means_in_half_precision_do_not_overflow():
    estimated = np.full(4, -300.0, np.float16)
    error = metrics.log_ratio_kl(0.0, np.full(1_000, 300.0, np.float16), estimated)
    assert error == -301.0


def test_log_ratios_need_one_number_per_sample():
    numbers, column = np.zeros(10), np.zeros((10, 1))
    for call in (
        lambda: metrics.log_ratio_kl(0.0, column, numbers),
        lambda: metrics.log_ratio_kl(0.0, numbers, column),
        lambda: metrics.kl_to_density(np.arange(20.0).reshape(10, 2), numbers[:7]),
        lambda: metrics.kl_to_density(np.arange(20.0).reshape(10, 2), column),
    ):
        with pytest.raises(ValueError, match="expected one number per sample"):
            call()


def test_the_entropy_needs_samples_that_differ():
    with pytest.raises(ValueError, match="more than 5 samples coincide"):
        metrics.entropy(np.zeros((10, 2)))
    with pytest.raises(ValueError, match="expected more than 5 samples, got 3"):
        metrics.entropy(np.zeros((3, 2)))


@pytest.mark.parametrize("source", [swissroll(), gaussians8(), gaussians25()], ids=lambda s: s.name)
def test_the_log_density_of_points_integrates_to_one_and_is_that_of_the_samples(source):
    density = source.density
    axis = np.arange(-2.2, 2.2, 0.02 if density.modes is None else 0.01)  # At most 0.7 deviations.
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(density.log_density(grid)).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=1e-3)
    points = source.held_out(10_000, 3)
    assert metrics.kl_to_density(points, density.log_density(points)) == pytest.approx(0, abs=0.05)

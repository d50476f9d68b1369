"""The energy ratio of real data is 1 on average, and all metrics have a value of real data."""

import numpy as np
import pytest

from experiments.data.built_in import gaussians8
from experiments.evaluation import Samples, points, references
from experiments.evaluation.points import evaluate_points
from fdrl_jax.metrics import energy_distance, mean_distance


@pytest.fixture(scope="module")
def reference():
    return references.of(gaussians8())


def log_normal(x):
    return -0.5 * np.square(x).sum(axis=1) - np.log(2 * np.pi)


def test_the_energy_distance_is_the_mean_over_fresh_data_of_the_unbiased_estimate(reference):
    samples, *data = (reference.held_out(200, seed) for seed in range(7))
    ratio, found = points.energy(samples, samples + 0.5, data)
    # By the expected biased distance of true data, E|Y - Y'| (1/N + 1/M).
    scale = np.mean([mean_distance(fresh) for fresh in data]) * 2 / 200
    assert ratio.value == pytest.approx(1.0 + found.value / scale)
    assert ratio.prior.value == pytest.approx(1.0 + found.prior.value / scale)
    expected = [energy_distance(samples, fresh) for fresh in data[:-1]]
    assert found.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.samples.spread == pytest.approx(np.std(expected, ddof=1), abs=1e-5)
    real = [energy_distance(a, b) for a, b in zip(data[1:], data, strict=False)]
    assert found.real.value == pytest.approx(np.mean(real), abs=1e-5)


def test_all_metrics_of_a_mixture_have_the_prior_and_real_data_next_to_them(reference):
    real = reference.held_out(400, 50)
    prior = np.random.default_rng(0).normal(size=real.shape).astype(np.float32)
    found = evaluate_points(reference, Samples(prior, real, real), lambda x: np.zeros(len(x)))
    for metric in found.metrics.values():
        if metric.definition != "log_ratio_kl":
            assert metric.prior is not None, metric.name
            assert metric.real.spread is not None, metric.name
    assert found.metrics["modes_hit"].value == found.metrics["modes_hit"].real.value == 8
    assert found.metrics["high_quality_share"].prior.value < 0.5
    assert found.metrics["kl_to_data"].value < 0.2 < found.metrics["kl_to_data"].prior.value
    assert found.metrics["log_ratio_kl"].value < 0.2, "0 is the log-ratio of real data"
    assert found.record == {"num_draws": 5, "num_samples": 400, "skipped": []}


def test_modes_are_hit_only_within_their_radius(reference):
    modes, std = reference.density.modes, reference.density.mode_std
    samples = np.repeat(modes[:3], 20, axis=0).astype(np.float32)
    samples += np.linspace(0.0, 0.1 * std, 60, dtype=np.float32)[:, None]
    samples[40:] += 9.0 * std  # The third mode is missed.
    found = evaluate_points(reference, Samples(samples, samples, samples), lambda x: x[:, 0])
    assert found.metrics["modes_hit"].value == 2
    assert found.metrics["high_quality_share"].value == pytest.approx(2 / 3)


def test_the_kl_divergence_of_gaussians_is_that_in_closed_form():
    x = np.random.default_rng(0).normal(size=(10_000, 2))
    assert points.kl_to_density(x, log_normal) == pytest.approx(0.0, abs=0.04)
    shifted = 2.0 * x + [1.0, 0.0]
    expected = 0.5 * (2 * 4.0 + 1.0 - 2 - 2 * np.log(4.0))
    assert points.kl_to_density(shifted, log_normal) == pytest.approx(expected, abs=0.06)


def test_the_error_of_a_log_ratio_is_zero_for_the_true_one_and_that_of_its_mass_otherwise():
    rng = np.random.default_rng(0)
    flowed, data = rng.normal(0.5, size=200_000), rng.normal(size=200_000)

    def log_r(x):  # N(0.5, 1) over N(0, 1), whose divergence is 0.125.
        return 0.5 * x - 0.125

    assert points.log_ratio_kl(0.125, log_r(flowed), log_r(data)) == pytest.approx(0.0, abs=0.01)
    doubled = points.log_ratio_kl(0.125, log_r(flowed) + np.log(2), log_r(data) + np.log(2))
    assert doubled == pytest.approx(2.0 - 1.0 - np.log(2), abs=0.02)


def test_a_metric_that_the_samples_do_not_allow_is_skipped_and_the_others_are_computed(reference):
    real = reference.held_out(200, 50)
    for ours in (np.repeat(real[:20], 10, axis=0), real[:3]):
        found = evaluate_points(reference, Samples(ours, ours, ours), lambda x: np.zeros(len(x)))
        assert found.record["skipped"][0].startswith("metrics of the density: ")
        assert {"energy_ratio", "modes_hit"} < set(found.metrics)
        assert not {"kl_to_data", "log_ratio_kl"} & set(found.metrics)

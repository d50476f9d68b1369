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


def test_the_energy_distance_is_the_mean_over_fresh_data_of_the_unbiased_estimate(reference):
    samples, *data = (reference.held_out(200, seed) for seed in range(4))
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
        if metric.definition not in ("log_ratio_kl", *_OF_BRIDGED):
            assert metric.real is not None, metric.name
            assert metric.prior is not None, metric.name
            assert metric.real.spread is not None, metric.name
    assert found.metrics["modes_hit"].value == found.metrics["modes_hit"].real.value == 8
    assert found.metrics["high_quality_share"].prior.value < 0.5
    assert found.metrics["kl_to_data"].value < 0.2 < found.metrics["kl_to_data"].prior.value
    assert found.metrics["log_ratio_kl"].value < 0.2, "0 is the log-ratio of real data"
    assert found.record == {"num_draws": 5, "num_samples": 400, "skipped": []}


@pytest.mark.parametrize(
    ("samples", "skipped"),
    [
        (lambda real: np.repeat(real[:20], 10, axis=0), ["kl_to_data", "log_ratio_kl"]),
        (lambda real: real[:3], ["kl_to_data", "log_ratio_kl"]),
    ],
    ids=["coinciding", "few"],
)
def test_a_metric_that_the_samples_do_not_allow_is_skipped_and_the_others_are_computed(
    reference, samples, skipped
):
    ours = samples(reference.held_out(200, 50))
    found = evaluate_points(reference, Samples(ours, ours, ours), lambda x: np.zeros(len(x)))
    assert [reason.partition(":")[0] for reason in found.record["skipped"]] == skipped
    assert {"energy_ratio", "modes_hit"} < found.metrics.keys()
    assert not found.metrics.keys() & set(skipped)


_OF_BRIDGED = ("kl_of_bridged_to_data", "kl_of_bridged_to_data_by_estimator")

"""Curves of the metric: every point is that of samples drawn for it alone."""

import csv

import numpy as np
import pytest
from experiments.request import Request

from experiments import build, modes
from experiments.errors import UserError
from experiments.evaluation import curve
from experiments.evaluation.cheap import CheapMetric, cheap_metric
from experiments.pictures import curves
from experiments.sampling import runs
from experiments.sampling.draw import sample_state
from fdrl_jax.problem import FlowParams

NUM = 50  # More than a batch, and no multiple of one.


def rows(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_one_pass_takes_the_metric_of_the_samples_at_every_length(trained, tiny):
    experiment = build.experiment(tiny())  # K = 3, kappa = 1.
    train_state = runs.restore(experiment, trained, None)
    samples = sample_state(experiment, train_state, NUM)

    points = list(curve.over_length(experiment, train_state, (0, 3, 4), NUM))

    assert [length for length, _ in points] == [0, 3, 4]
    for (_, metric), stage in zip(points, samples, strict=True):
        expected = cheap_metric(experiment.source, stage)
        assert metric.name == expected.name
        np.testing.assert_allclose(metric.value, expected.value, rtol=1e-4, atol=1e-6)


def test_mode_curve_writes_values_and_a_picture_and_names_the_best(trained, tiny, capsys):
    config = tiny(changes={"curve.lengths": (2, 4, 6)})
    modes.run(Request("curve", config, trained.root, num_samples=NUM))
    modes.run(Request("curve", tiny(changes={"curve.over": "step"}), trained.root, num_samples=NUM))

    (over, name), *values = rows(trained.curves / "length_step_4.csv")
    assert (over, name) == ("length", "energy_distance_50")
    assert [int(at) for at, _ in values] == [2, 4, 6]
    best = min(values, key=lambda row: float(row[1]))[0]
    assert f"best: {best}\n" in capsys.readouterr().out
    assert [row[0] for row in rows(trained.curves / "step.csv")] == ["step", "2", "4"]
    for name in ("length_step_4", "step"):
        assert (trained.curves / f"{name}.png").stat().st_size > 5_000


@pytest.mark.parametrize(("num_steps", "stride"), [(20, 5), (100, 10), (3, 5), (1_000, 100)])
def test_lengths_go_from_the_prior_to_beyond_k_and_hold_both_ends_of_the_flow(num_steps, stride):
    flow = FlowParams(num_steps=num_steps, num_refine_steps=7, step_size=1.0, noise_scale=0.0)
    lengths = curve.choose_lengths(flow)
    assert {0, stride, num_steps, num_steps + 7} < set(lengths)
    assert lengths == tuple(sorted(lengths))
    assert lengths[-1] == num_steps + 50
    assert len(lengths) <= 24


def test_the_best_of_a_curve_is_a_number_in_the_metrics_own_direction():
    def points(*values, lower):
        return [(i, CheapMetric("metric", value, lower)) for i, value in enumerate(values)]

    assert curves.best_of(points(float("nan"), 2.0, 1.0, 3.0, lower=True))[0] == 2
    assert curves.best_of(points(float("nan"), 2.0, 1.0, 3.0, lower=False))[0] == 3


def test_a_metric_of_one_sample_is_refused_in_one_line(trained, tiny):
    with pytest.raises(UserError, match="at least 2 samples, got --num_samples=1"):
        modes.run(Request("curve", tiny(), trained.root, num_samples=1))

"""Curves of the metric: each point equals the metric of separately drawn samples."""

import csv
import dataclasses

import numpy as np
import pytest
from small_runs import command, contents, start

from experiments import curve
from experiments.draw import sample_state
from experiments.errors import UserError
from experiments.evaluation.draws import cheap_metric
from experiments.run import open_checkpoint

NUM = 50  # More than a batch, and not a multiple of it.


def test_one_pass_computes_the_metric_of_the_samples_at_every_length(trained):
    opened = open_checkpoint(command("curve", trained.root))  # K = 3, kappa = 1.
    samples = sample_state(opened.experiment, opened.state, NUM, num_prior=NUM, num_bridged=NUM)
    metric_of = cheap_metric(trained.metric_reference)
    points = list(curve.over_length(opened, (0, 3, 4), NUM))
    assert [length for length, _ in points] == [0, 3, 4]
    for (_, metric), stage in zip(points, samples, strict=True):
        np.testing.assert_allclose(metric.value, metric_of(stage).value, rtol=1e-4, atol=1e-6)

    # With a denoiser, it is that of denoised samples, except at the prior.
    problem = opened.experiment.problem._replace(denoise=lambda variables, x: 0.5 * x)
    denoised = dataclasses.replace(opened.experiment, problem=problem)
    start, end = curve.over_length(opened._replace(experiment=denoised), (0, 4), NUM)
    assert start[1] == points[0][1]
    expected = metric_of(sample_state(denoised, opened.state, NUM).refined)
    np.testing.assert_allclose(end[1].value, expected.value, rtol=1e-4, atol=1e-6)


def test_mode_curve_writes_values_and_a_picture_and_names_the_best(trained, capsys):
    start("curve", trained.root, num_samples=NUM)
    (table,) = trained.curves.glob("step_4-*.csv")
    with table.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["length", f"energy_distance_{NUM}"]
    values = {int(length): float(value) for length, value in rows}
    assert {0, 3, 4, 53} <= {*values}, "the prior, both ends of the flow, and beyond"
    best = min(values, key=values.get)
    assert f"best length: {best} (" in capsys.readouterr().out
    assert table.with_suffix(".png").stat().st_size > 1_000
    before = contents(trained.curves)
    start("curve", trained.root, num_samples=NUM)
    assert contents(trained.curves) == before
    with pytest.raises(UserError, match="at least 2 samples, got --num_samples=1"):
        start("curve", trained.root, num_samples=1)

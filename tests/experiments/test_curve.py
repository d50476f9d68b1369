"""Curves of the metric: each point equals the metric of separately drawn samples."""

import csv
import dataclasses

import numpy as np
import pytest
from small_runs import command, contents, start

from experiments import curve
from experiments.classifier import open_to_judge
from experiments.draw import sample_state
from experiments.errors import UserError
from experiments.evaluation.cheap import cheap_metric
from experiments.evaluation.metrics import measured
from experiments.run import open_checkpoint
from fdrl_jax.training.problem import FlowParams

NUM = 50  # More than a batch, and not a multiple of it.


def rows(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_one_pass_computes_the_metric_of_the_samples_at_every_length(trained):
    opened = open_checkpoint(command("curve", trained.root))  # K = 3, kappa = 1.
    samples = sample_state(opened.experiment, opened.state, NUM, num_prior=NUM, num_bridged=NUM)

    points = list(curve.over_length(opened, (0, 3, 4), NUM))

    assert [point.at for point in points] == [0, 3, 4]
    for point, stage in zip(points, samples, strict=True):
        expected = cheap_metric(trained.metric_reference, stage)
        assert point.metric.name == expected.name
        np.testing.assert_allclose(point.metric.value, expected.value, rtol=1e-4, atol=1e-6)
        output = opened.experiment.problem.estimator.apply(opened.state.ema_variables, stage)
        np.testing.assert_allclose(point.output, np.mean(output), rtol=1e-3, atol=1e-5)


def test_with_a_denoiser_the_metric_is_that_of_denoised_samples_and_the_output_is_not(trained):
    opened = open_checkpoint(command("curve", trained.root))
    model = opened.experiment

    def halve(variables, x):
        return 0.5 * x

    halved = dataclasses.replace(model, problem=model.problem._replace(denoise=halve))
    samples = sample_state(halved, opened.state, NUM)

    prior, end = curve.over_length(opened._replace(experiment=halved), (0, 4), NUM)
    plain = list(curve.over_length(opened, (0, 4), NUM))

    expected = cheap_metric(trained.metric_reference, samples.refined)
    np.testing.assert_allclose(end.metric.value, expected.value, rtol=1e-4, atol=1e-6)
    assert abs(end.metric.value - plain[1].metric.value) > 0.1 * plain[1].metric.value
    assert prior.metric.value == plain[0].metric.value
    assert [prior.output, end.output] == [point.output for point in plain]


@pytest.mark.parametrize(
    ("of_real", "expected"),
    [(2.0, 0), (1.0, 0), (0.1, 12), (-0.25, 25), (-0.3, 30), (-0.4, None)],
)
def test_the_balanced_length_is_where_samples_have_the_mean_output_of_data(of_real, expected):
    metric = measured("energy_distance", [1.0], num=NUM)
    outputs = {0: 1.0, 10: 0.2, 20: -0.2, 30: -0.3, 40: -0.3}
    points = [curve.Point(length, metric, output) for length, output in outputs.items()]
    assert curve.balanced_length(points, of_real) == expected


def test_a_curve_over_the_length_does_not_reject(of_digits):
    with pytest.raises(UserError, match="a curve over the length of the flow does not reject"):
        start("curve", of_digits.root, None, {"sample.rejection": True})


def test_the_mean_output_of_data_is_that_with_the_noise_of_training(of_digits):
    opened = open_checkpoint(command("curve", of_digits.root))
    images, _ = curve._held_out(opened, 100)
    noise = images - opened.run.metric_reference.images[:100]
    expected = opened.experiment.settings.data.dequantisation
    assert np.std(noise) == pytest.approx(expected, rel=0.05)


def test_mode_curve_writes_values_and_a_picture_and_names_the_best(trained, capsys):
    start("curve", trained.root, None, {"curve.lengths": (2, 4, 6)}, num_samples=NUM)
    out = capsys.readouterr().out
    start("curve", trained.root, None, {"curve.over": "step"}, num_samples=NUM)

    (over, name, output), *values = rows(trained.curves / "length_step_4.csv")
    assert (over, name, output) == ("length", "energy_distance_50", "mean_output")
    assert [int(row[0]) for row in values] == [2, 4, 6]
    assert "balanced length: " in out
    best, value, _ = min(values, key=lambda row: float(row[1]))
    assert f"best length: {best} (energy_distance_50 {float(value):.5g})\n" in out
    assert [row[0] for row in rows(trained.curves / "step.csv")] == ["step", "2", "4"]
    for name in ("length_step_4", "step"):
        assert (trained.curves / f"{name}.png").stat().st_size > 5_000
    before = contents(trained.curves)
    start("curve", trained.root, None, {"curve.lengths": (2, 5)}, num_samples=NUM)
    after = contents(trained.curves)
    assert after.items() >= before.items(), "no curve replaces another one"
    assert len(after) == len(before) + 2
    with pytest.raises(UserError, match="uses all checkpoints; remove --checkpoint"):
        start("curve", trained.root, None, {"curve.over": "step"}, checkpoint=2)


def test_only_the_first_process_shows_the_progress_of_a_curve(trained, monkeypatch, capsys):
    monkeypatch.setattr(curve.parallel, "is_first_process", lambda: False)
    assert len(list(curve.over_step(open_checkpoint(command("curve", trained.root)), NUM))) == 2
    assert "sampling" not in capsys.readouterr().err


def test_a_curve_in_the_features_of_a_classifier_is_a_file_of_its_own(
    of_digits, classifier_of_digits, capsys
):
    start("curve", of_digits.root, None, {"curve.lengths": (0, 4)}, num_samples=NUM)
    of_svc = contents(of_digits.curves)
    capsys.readouterr()

    flags = {"num_samples": NUM, "classifier": classifier_of_digits}
    start("curve", of_digits.root, None, {"curve.lengths": (0, 4)}, **flags)

    assert capsys.readouterr().out.startswith("classifier: run, accuracy ")
    assert contents(of_digits.curves).items() > of_svc.items()
    (over, name, _), *values = rows(of_digits.curves / "length_step_4_classifier.csv")
    assert (over, name) == ("length", f"frechet_classifier_{NUM}")
    opened = open_checkpoint(command("curve", of_digits.root))
    samples = sample_state(opened.experiment, opened.state, NUM, num_prior=NUM)
    source = opened.experiment.source
    judge, _ = open_to_judge(classifier_of_digits, source.classes, source.event_shape)
    for (_, value, _), stage in zip(values, (samples.prior, samples.refined), strict=True):
        expected = cheap_metric(of_digits.metric_reference, stage, judge).value
        assert float(value) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("num_steps", "stride"), [(20, 5), (100, 10), (3, 5), (1_000, 100)])
def test_lengths_go_from_the_prior_to_beyond_k_and_include_both_ends_of_the_flow(num_steps, stride):
    flow = FlowParams(num_steps=num_steps, num_refine_steps=7, step_size=1.0, noise_scale=0.0)
    lengths = curve.choose_lengths(flow)
    assert {0, stride, num_steps, num_steps + 7} < set(lengths)
    assert lengths == tuple(sorted(lengths))
    assert lengths[-1] == num_steps + 50
    assert len(lengths) <= 24


def test_a_metric_of_one_sample_is_refused_in_one_line(trained):
    with pytest.raises(UserError, match="at least 2 samples"):
        start("curve", trained.root, num_samples=1)

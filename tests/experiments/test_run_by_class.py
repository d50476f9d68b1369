"""A run with a density ratio for each class: trained, sampled, measured and exported."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_runs import command, start

import fdrl_jax
from experiments import export, prior
from experiments.data import load
from experiments.data.decode import to_uint8
from experiments.draw import Sampler, on_devices
from experiments.errors import UserError
from experiments.experiment import build
from experiments.export.load_sampler import Sampler as LoadedSampler
from experiments.run import open_checkpoint, open_run
from fdrl_jax.training import rng

BY_CLASS = {"network.by_class": True}


@pytest.fixture(scope="module")
def by_class(tmp_path_factory):
    """A tiny run on digits, trained and evaluated."""
    folder = tmp_path_factory.mktemp("by_class") / "run"
    # A denoiser after so few steps would hide what the flow does.
    start("train", folder, "digits:tiny", {**BY_CLASS, "network.denoiser_width": 0})
    return open_run(folder)


def drawn(run, name, **flags):
    start("sample", run.root, None, {"sample.name": name}, num_samples=20, **flags)
    return np.load(run.samples / f"{name}.npz")["arr_0"].astype(int)


def test_samples_are_of_all_classes_in_turn_or_of_one_without_a_classifier(by_class):
    every, sevens = drawn(by_class, "every"), drawn(by_class, "sevens", **{"class": "7"})
    np.testing.assert_array_equal(every[7::10], sevens[7::10])
    assert (np.abs(every - sevens).max(axis=(1, 2, 3)) > 1).sum() > 15, "other classes differ"
    np.testing.assert_array_equal(drawn(by_class, "turns", **{"class": "all"}), every)


def test_each_class_has_a_row_in_the_picture(by_class, monkeypatch):
    rows = []
    monkeypatch.setattr(
        "experiments.pictures.images.by_class",
        lambda images, labels, classes: rows.append(labels.tolist()) or _figure(),
    )
    drawn(by_class, "picture")
    assert rows == [[*range(10)] * 2]
    drawn(by_class, "picture_of_threes", **{"class": "3"})
    assert len(rows) == 1


def _figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_the_evaluation_has_the_accuracy_of_classes(by_class):
    metric = by_class.newest_evaluation({})["metrics"]["class_accuracy_svc"]
    # The prior is a Gaussian for each class, so its samples are recognised before any training.
    assert min(metric["real"], metric["prior"], metric["value"]) > 0.8


def test_the_mean_output_on_held_out_data_is_that_of_their_classes(by_class, capsys):
    changes = {"curve.over": "length", "curve.lengths": (0, 1)}
    start("curve", by_class.root, None, changes, num_samples=32)
    opened = open_checkpoint(command("sample", by_class.root))
    model, reference = opened.experiment, opened.run.metric_reference
    outputs = model.network.apply(opened.state.ema_variables, reference.images[:32])
    expected = np.mean(outputs[np.arange(32), reference.labels[:32]])
    assert f"mean output {expected:.4f} on held-out data" in capsys.readouterr().out


def test_the_cost_of_a_run_is_known_before(capsys):
    start("dry_run", None, "digits:tiny", BY_CLASS)
    (milliseconds,) = re.findall(r"flow step: ([\d.]+) ms", capsys.readouterr().out)
    assert float(milliseconds) > 0.0


def test_all_attempts_at_a_sample_are_of_its_class(by_class):
    opened = open_checkpoint(command("sample", by_class.root, None, {"sample.rejection": True}))

    def prior_sample(params, keys, batch):  # The number of the class, and a random part below 0.5.
        noise = 0.5 * jax.vmap(jax.random.uniform)(keys)
        return (batch["label"] + noise)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)

    problem = opened.experiment.problem
    estimator = problem.estimator._replace(
        apply=lambda variables, x, labels: 20.0 * (x[:, 0, 0, 0] - labels)
    )
    problem = problem._replace(
        estimator=estimator,
        prior_sample=prior_sample,
        flow=problem.flow._replace(step_size=1e-9, noise_scale=0.0),
    )
    model = dataclasses.replace(opened.experiment, problem=problem)
    sampler = Sampler(model)
    samples = sampler(*on_devices(model, opened.state), {"refined": 60})["refined"]
    assert 0.0 < sampler.share_accepted < 0.7
    np.testing.assert_array_equal(np.floor(samples[:, 0, 0, 0]), np.arange(60) % 10)


def test_an_export_draws_the_samples_of_a_class(tiny, tmp_path):
    wanted = tiny("digits", {**BY_CLASS, "network.denoiser_width": 0, "precision": "float32"})
    model = build(wanted, load(wanted.data))
    state = model.init_state()
    export.write(model, state, tmp_path / "export", ("cpu",))
    sampler, loaded = fdrl_jax.pretrained(tmp_path / "export"), LoadedSampler(tmp_path / "export")
    key, threes = rng.root_key(wanted.seed), np.full(12, 3)
    every = Sampler(model)(*on_devices(model, state), {"refined": 12})["refined"]
    of_class = sampler(key, 12, labels=threes, batch_size=5)
    np.testing.assert_allclose(sampler(key, 12), every, atol=1e-4)
    np.testing.assert_allclose(loaded(12, batch_size=5), every, atol=1e-4)
    np.testing.assert_allclose(loaded(4, first=8), every[8:], atol=1e-4)
    np.testing.assert_allclose(loaded(12, labels=threes), of_class, atol=1e-4)
    np.testing.assert_allclose(of_class[3], every[3], atol=1e-4)
    assert np.abs(of_class[4] - every[4]).max() > 1e-3
    np.testing.assert_allclose(sampler.path(key, 12, labels=threes)[-1], of_class, atol=1e-4)
    ratios = model.network.apply(model.sampling_variables(state), of_class)
    np.testing.assert_allclose(sampler.log_ratio(of_class, threes), ratios[:, 3], atol=1e-4)
    assert "labels=[0] * 64" in (tmp_path / "export" / "README.md").read_text()
    for call in (
        lambda labels: sampler(key, 12, labels=labels),
        lambda labels: loaded(12, labels=labels),
    ):
        with pytest.raises(ValueError, match="from 0 to 9"):
            call(np.full(12, 10))
        with pytest.raises(ValueError, match="12"):
            call(np.zeros(3, int))
    with pytest.raises(ValueError, match="the labels of x are missing"):
        sampler.log_ratio(of_class)


def test_labels_of_a_sampler_with_one_ratio_are_refused():
    sampler = fdrl_jax.pretrained("digits")
    with pytest.raises(ValueError, match="one ratio for all classes"):
        sampler(rng.root_key(0), 2, labels=[0, 1])


def test_an_export_becomes_a_run_that_draws_samples_of_a_class(tiny, tmp_path):
    wanted = tiny("digits", {**BY_CLASS, "network.denoiser_width": 0, "precision": "float32"})
    source = load(wanted.data)
    model = build(wanted, source, prior.fit_to(source, wanted.prior, 10))
    folder = tmp_path / "export"
    export.write_compact(model, model.init_state(), folder, rank=64, num_frequencies=64)
    start("import", tmp_path / "run", sampler=folder)
    samples = drawn(open_run(tmp_path / "run"), "fives", **{"class": "5"})
    sampler = fdrl_jax.pretrained(folder)
    expected = sampler(rng.root_key(wanted.seed), 20, labels=[5] * 20)
    np.testing.assert_allclose(samples, to_uint8(np.asarray(expected)).astype(int), atol=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition.weight": 1.0}, "condition.weight: needs --classifier"),
        ({"condition.num_refine_steps": 1}, "condition.num_refine_steps: needs --classifier"),
    ],
)
def test_settings_of_a_classifier_have_no_effect_without_one(by_class, changes, message):
    with pytest.raises(UserError, match=message):
        start("sample", by_class.root, None, changes, num_samples=2, **{"class": "3"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("swissroll:tiny", "data.name=swissroll: network.by_class needs labelled images"),
        ("digits_pair:tiny", "is not for flows that start from images"),
    ],
)
def test_a_ratio_for_each_class_needs_classes(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        start("train", tmp_path / "run", config, BY_CLASS)


@pytest.mark.parametrize("name", ["by_class", "denoiser_width"])
def test_a_classifier_refuses_what_is_for_ratios(tmp_path, name):
    message = f"network.{name} is for a density ratio, not for a classifier"
    with pytest.raises(UserError, match=message):
        start("classifier", tmp_path / "run", "digits_classifier:tiny", {f"network.{name}": 1})

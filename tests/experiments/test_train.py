"""Training resumes exactly, stops and recovers repeatably, and loses nothing."""

import json
import math
import os
import re
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import SMALL_RESNET, command, contents, start, train

from experiments import experiment, log, run
from experiments import train as program
from experiments.errors import DivergedError, StoppedError, UserError
from experiments.evaluation import draws
from experiments.evaluation.metrics import Estimate, Metric
from experiments.hosts import StopSignals
from experiments.settings import Settings
from experiments.train import Hook

BAD_STEP = 7
DIVERGING = {
    "optimizer.schedule": "constant",
    "train.num_steps": 12,
    "train.steps_per_dispatch": 4,
    "log.every_steps": 1,
    "checkpoint.every_steps": 5,
    "checkpoint.keep": 9,
    "snapshot.every_steps": 1_000,
}


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def steps_of(folder):
    with run.open_run(folder).checkpoints() as store:
        return store.steps()


def test_a_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path):
    changes = {"optimizer.schedule": "constant", "train.num_steps": 5, "checkpoint.every_steps": 1}
    whole = train(tmp_path / "whole", changes, "digits:tiny")
    train(tmp_path / "parts", {**changes, "train.num_steps": 3}, "digits:tiny")
    assert_equal_bits(train(tmp_path / "parts", changes, "digits:tiny"), whole)


def test_neither_clock_nor_rights_nor_temporary_files_change_a_run(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained.root, tmp_path / "run")
    newest = folder / "checkpoints" / "4"
    shutil.rmtree(newest)
    now, start = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: 2 * start - now())
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # Nobody can write there.
    before = os.umask(0o77)
    try:
        state = train(folder)
    finally:
        os.umask(before)
    assert_equal_bits(state, trained.restored(state).state)
    assert not any(path.stat().st_mode & 0o77 for path in [newest, *newest.rglob("*")])


def test_the_number_of_steps_per_dispatch_does_not_change_a_number(tmp_path):
    one = train(tmp_path / "one", {"train.steps_per_dispatch": 1})
    three = train(tmp_path / "three", {"train.steps_per_dispatch": 3})
    assert_equal_bits(one.variables, three.variables)


def test_the_last_state_is_evaluated_as_it_would_be_restored(trained):
    (record,) = trained.evaluations.glob("*/record.json")
    with trained.checkpoints() as store:
        model = experiment.build(trained.settings, trained.source(), trained.prior())
        restored = store.restore(model.state_shapes())
    assert json.loads(record.read_text())["key"]["checkpoint_sha256"] == restored.sha256


@pytest.mark.parametrize("key", ["attack.epsilon", "augment.max_shift"])
def test_a_setting_of_classifiers_is_refused_for_a_density_ratio(key, tmp_path):
    with pytest.raises(UserError, match=rf"{key}: for classifiers only.*--mode=classifier"):
        train(tmp_path / "run", {key: 2})
    assert not (tmp_path / "run").exists()


def test_a_combination_that_cannot_run_is_refused_before_the_prior_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(program.prior, "fit", lambda *_: pytest.fail("the prior was fitted"))
    for change, expected in (({"loss.name": "lsif"}, "use 'lsif' with"), ({}, "divi")):
        with pytest.raises(UserError, match=expected):
            train(tmp_path, {"train.batch_size": 15, **change}, "digits:tiny")


def test_all_processes_train_with_the_prior_that_the_first_one_fitted(tmp_path, monkeypatch):
    # On another processor, or with other threads, the last digits of a fit differ.
    arguments = "train", tmp_path / "run", "digits:tiny", SMALL_RESNET
    with run.locked_folder(tmp_path / "run"):
        opened, first = program.create_or_resume(command(*arguments))
    fit = program.prior.fit_to

    def fitted(*of):
        found = fit(*of)
        return found._replace(params={**found.params, "mean": np.zeros((1, 64))})

    monkeypatch.setattr(program.prior, "fit_to", fitted)
    monkeypatch.setattr(program.parallel, "is_first_process", lambda: False)
    monkeypatch.setattr(run, "create", lambda *_: opened)
    command_of_other = command("train", tmp_path / "other", *arguments[2:])

    _, other = program.create_or_resume(command_of_other)

    jax.tree.map(np.testing.assert_array_equal, other.constants.prior, first.constants.prior)


def test_a_metric_in_training_needs_two_held_out_images(image_folder, tmp_path):
    wanted = {"data.dir": image_folder, "data.num_held_out": 1, "evaluate.every_steps": 2}
    with pytest.raises(UserError, match="the metric needs at least 2 held-out images"):
        train(tmp_path / "run", {**wanted, "data.image_size": 8, **SMALL_RESNET}, "folder:tiny")
    assert not (tmp_path / "run").exists()


def run_with_hook(folder, every, act, **changes):
    with run.locked_folder(folder):
        asked = command("train", folder, "swissroll:tiny", changes)
        opened, model = program.create_or_resume(asked)
        return program.fit(model, opened, [Hook(every, act)])


def test_a_stale_estimator_of_prior_and_data_trains_and_its_flow_has_any_length(tmp_path):
    train(tmp_path / "run", {"flow.num_steps": 0})  # Section 3 of the paper.
    logged = log.read(run.open_run(tmp_path / "run").metrics)
    assert all(math.isfinite(record["loss"]) for record in logged)
    flows = {f"flow.{key}": value for key, value in (("num_steps", 2), ("num_refine_steps", 0))}
    for changes in (flows, {"flow.num_refine_steps": 0}):
        start("sample", tmp_path / "run", None, changes, num_samples=8)
    one, other = (np.load(file)["arr_0"] for file in (tmp_path / "run/samples").glob("*.npz"))
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 1e-4


def test_a_hook_runs_at_its_multiples_and_at_the_end_and_its_result_is_logged(tmp_path):
    seen = []

    def act(moment):
        seen.append(moment.step)
        return {"seen": float(len(seen))}

    run_with_hook(tmp_path, 3, act, **{"log.every_steps": 100})
    assert seen == [3, 4]
    records = log.read(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["seen"]) for record in records] == [(3, 1.0), (4, 2.0)]


def stop_at_question(number, monkeypatch):
    asked = iter(range(1, 100))
    monkeypatch.setattr(StopSignals, "is_due", lambda _: next(asked) >= number)


def test_before_the_first_step_nothing_is_saved_and_the_message_says_so(tmp_path, monkeypatch):
    stop_at_question(1, monkeypatch)
    with pytest.raises(StoppedError, match=r"before the first step\. Rerun to start again"):
        train(tmp_path)
    assert steps_of(tmp_path) == []


def test_a_run_that_is_stopped_saves_its_step_and_resumes_to_the_same_numbers(
    tmp_path, monkeypatch
):
    every = ("snapshot.every_steps", "evaluate.every_steps")
    changes = {"checkpoint.every_steps": 100, **dict.fromkeys(every, 2)}
    whole = train(tmp_path / "whole", changes)
    with monkeypatch.context() as patched:
        stop_at_question(2, patched)
        with pytest.raises(StoppedError, match=r"step 2 is saved\. Rerun to resume") as caught:
            train(tmp_path / "parts", changes)
    assert caught.value.exit_code == 4
    assert steps_of(tmp_path / "parts") == [2]
    resumed = train(tmp_path / "parts", changes)
    assert_equal_bits(resumed.variables, whole.variables)
    # What is due at the step of the stop happens before it, as the snapshot and the metric here.
    one, other = (contents(tmp_path / name / "snapshots") for name in ("whole", "parts"))
    assert one == other
    assert {*one} == {"00000000.npz", "00000002.npz", "00000004.npz"}
    best = [(tmp_path / name / "checkpoints/best.json").read_bytes() for name in ("whole", "parts")]
    assert best[0] == best[1]


NAME = log.PREFIX + "energy_distance_64"


@pytest.fixture
def valued(monkeypatch):
    """Makes the metric return the given values, one after the other."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(
            draws,
            "cheap_metric",
            lambda _: lambda _: Metric("metric_32", "energy_distance", Estimate(next(left))),
        )

    return give


def best_of(folder):
    with run.open_run(folder).checkpoints() as store:
        return store.best()


def test_evaluation_during_training_changes_no_parameter_and_is_logged(tmp_path):
    plain = train(tmp_path / "plain")
    monitored = train(tmp_path / "monitored", {"evaluate.every_steps": 1})
    assert_equal_bits(monitored, plain)
    records = log.read(tmp_path / "monitored" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    values = {record["step"]: record[NAME] for record in records}
    found = best_of(tmp_path / "monitored")
    assert found["value"] == values[found["step"]] == min(values.values())


def test_the_best_checkpoint_is_kept_and_can_be_sampled(tmp_path, valued):
    valued(3.0, 1.0, math.nan, 2.0)
    changes = {"evaluate.every_steps": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 1}
    train(tmp_path, changes)
    assert best_of(tmp_path)["step"] == 2
    assert steps_of(tmp_path) == [2, 4]
    start("sample", tmp_path, checkpoint="best", num_samples=4)
    (record,) = (tmp_path / "samples").glob("*.json")
    assert json.loads(record.read_text())["key"]["step"] == 2


def test_a_resumed_run_knows_its_best(tmp_path, valued):
    changes = {
        "evaluate.every_steps": 1,
        "checkpoint.every_steps": 100,
        "checkpoint.keep": 1,
        "optimizer.schedule": "constant",
    }
    valued(3.0, 1.0, 2.0, 2.0)
    train(tmp_path, changes)
    valued(1.5, 0.5, 0.7)
    train(tmp_path, {**changes, "train.num_steps": 7})
    assert best_of(tmp_path) == {"metric": "metric_32", "value": 0.5, "step": 6}
    assert steps_of(tmp_path)[-2:] == [6, 7]


def test_early_snapshots_are_written_once_and_change_no_number_of_the_training(tmp_path):
    rarely = ("log.every_steps", "checkpoint.every_steps", "snapshot.every_steps")
    changes = {"train.num_steps": 12, "train.steps_per_dispatch": 12, **dict.fromkeys(rarely, 100)}
    with_early = train(tmp_path / "early", changes)
    assert {*contents(tmp_path / "early" / "snapshots")} == {
        "00000000.npz",
        "00000010.npz",
        "00000012.npz",
    }
    flags = command("train", tmp_path / "none", "swissroll:tiny", changes)
    with run.locked_folder(tmp_path / "none"):
        opened, model = program.create_or_resume(flags)
        without = program.fit(model, opened).state
    assert not opened.snapshots.exists()
    assert_equal_bits(with_early.variables, without.variables)
    logged = (log.read(tmp_path / name / "metrics.jsonl") for name in ("early", "none"))
    one, other = ([record["loss"] for record in records] for records in logged)
    assert one == other


def test_a_crash_while_a_snapshot_is_written_leaves_none(tmp_path, monkeypatch):
    def cut(file, **arrays):
        file.write(b"PK")
        file.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert list((tmp_path / "snapshots").iterdir()) == []


def poisoned(model, step):
    """Puts NaN into the first example of the batch that an uninterrupted run draws at a step."""
    draw, position = model.source.draw, (step - 1) * model.settings.train.batch_size

    def with_nan(arrays, host_batch, key, positions):
        batch = draw(arrays, host_batch, key, positions)
        is_hit = (positions == position).reshape(-1, *(1,) * (batch["real"].ndim - 1))
        return {**batch, "real": jnp.where(is_hit, jnp.nan, batch["real"])}

    source = model.source._replace(draw=with_nan)
    return experiment.build(model.settings, source)


def train_poisoned(folder, bad_step=BAD_STEP, **changes):
    """Trains on data with NaN in one batch."""
    with run.locked_folder(folder):
        asked = command("train", folder, "swissroll:tiny", DIVERGING | changes)
        opened, model = program.create_or_resume(asked)
        return program.fit(poisoned(model, bad_step), opened).state


def test_a_diverging_run_stops_names_the_step_logs_it_and_keeps_the_last_good_checkpoint(tmp_path):
    before = train_poisoned(tmp_path, **{"train.num_steps": 5})
    with pytest.raises(DivergedError, match=r"loss is nan at step 7; step 5 is saved"):
        train_poisoned(tmp_path)
    # The log contains the interval that diverged, which helps to find the cause.
    last = log.read(tmp_path / "metrics.jsonl")[-1]
    assert (last["step"], last["loss"]) == (7, None)
    with run.open_run(tmp_path).checkpoints() as store:
        assert store.steps() == [5]
        kept = store.restore(jax.eval_shape(lambda: before))
    assert_equal_bits(kept.state, before)


@pytest.mark.parametrize(
    ("output", "name", "value", "expected"),
    [
        ("log_ratio", "loss", np.nan, "loss is nan at step 11"),
        ("log_ratio", "output_real", 60.0, "log ratio .* saturated at 60 at step 11"),
        ("ratio", "output_flowed", -2e4, "mean ratio .* saturated at -2e\\+04 at step 11"),
        ("log_ratio", "grad_norm", np.inf, "grad_norm is inf at step 11"),
    ],
)
def test_divergence_is_described_by_the_first_step_and_metric(output, name, value, expected):
    names = ("loss", "grad_norm", "drift_norm", "output_real", "output_flowed")
    values = {n: np.zeros(3) for n in names}
    assert program.find_trouble(np.arange(10, 13), values, output, Settings()) is None
    values[name] = np.array([0.0, value, value])
    trouble = program.find_trouble(np.arange(10, 13), values, output, Settings())
    assert re.search(expected, trouble)

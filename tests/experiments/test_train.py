"""Training resumes exactly, stops repeatably, and loses nothing."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import SMALL_RESNET, command, contents, train

from experiments import devices, experiment, log, run
from experiments import train as program
from experiments.errors import DivergedError, StoppedError, UserError
from experiments.evaluation import draws
from experiments.evaluation.metrics import Estimate, Metric
from experiments.settings import Settings
from experiments.train import StopSignals
from fdrl_jax.training import parallel

RATES = ("steps_per_second", "examples_per_second")


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def logged(folder):
    """Returns the lines of the log without the rates."""
    lines = log.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in RATES} for line in lines]


def steps_of(folder):
    with run.open_run(folder).checkpoints() as store:
        return store.steps()


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
    assert logged(folder) == logged(trained.root)
    assert not any(path.stat().st_mode & 0o77 for path in [newest, *newest.rglob("*")])
    (record,) = trained.evaluations.glob("*/record.json")
    sha256 = json.loads(record.read_text())["key"]["checkpoint_sha256"]
    assert sha256 == trained.digest(state), "the last state is evaluated as it would be restored"


@pytest.mark.slow
def test_the_number_of_steps_per_dispatch_does_not_change_a_number(tmp_path):
    one = train(tmp_path / "one", {"train.steps_per_dispatch": 1})
    three = train(tmp_path / "three", {"train.steps_per_dispatch": 3})
    assert_equal_bits(one.variables, three.variables)
    assert logged(tmp_path / "one") == logged(tmp_path / "three")


def test_a_combination_that_cannot_run_is_refused_before_the_prior_is_fitted(
    tmp_path, image_folder, monkeypatch
):
    monkeypatch.setattr(program.prior, "fit_to", lambda *_: pytest.fail("the prior was fitted"))
    of_images = {"data.dir": image_folder, "data.num_held_out": 1, "evaluate.every_steps": 2}
    for config, changes, expected in (
        ("digits:tiny", {"loss.name": "lsif"}, "needs a positive ratio"),
        ("digits:tiny", {"train.batch_size": 15}, "does not divide over"),
        ("digits:tiny", {"evaluate.inception_weights": "nowhere.pth"}, "nowhere.pth"),
        ("folder:tiny", {**of_images, "data.image_size": 8}, "at least 2 held-out images"),
    ):
        with pytest.raises(UserError, match=expected):
            train(tmp_path / "run", changes, config)
    assert not (tmp_path / "run").exists()


def test_all_processes_train_with_the_prior_that_the_first_one_fitted(tmp_path, monkeypatch):
    # On another processor, or with other threads, the last digits of a fit differ.
    arguments = "train", tmp_path / "run", "digits:tiny", SMALL_RESNET
    with run.locked_folder(tmp_path / "run"):
        opened, first = program.open_or_create(command(*arguments))
    fit = program.prior.fit_to

    def other_fit(*of):
        fitted = fit(*of)
        return {**fitted, "mean": fitted["mean"] + 1.0}

    monkeypatch.setattr(program.prior, "fit_to", other_fit)
    monkeypatch.setattr(devices, "is_first_process", lambda: False)
    monkeypatch.setattr(run, "create", lambda *_: opened)
    _, other = program.open_or_create(command("train", tmp_path / "other", *arguments[2:]))
    assert_equal_bits(other.constants.prior, first.constants.prior)


def stop_at_question(number, monkeypatch):
    """Stops the training when it asks whether to stop for the time of a number."""
    asked = []
    monkeypatch.setattr(StopSignals, "is_due", lambda _: len(asked) >= number or asked.append(1))


def test_a_run_that_is_stopped_anywhere_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    changes = {"train.num_steps": 7, "train.steps_per_dispatch": 1, "log.every_steps": 2}
    changes |= {f"{name}.every_steps": 3 for name in ("checkpoint", "evaluate")}
    changes["snapshot.every_steps"] = 4
    train(tmp_path / "whole", changes)
    folder = tmp_path / "parts"
    with monkeypatch.context() as patched:
        stop_at_question(0, patched)
        with pytest.raises(StoppedError, match=r"no step is saved\. Rerun to resume"):
            train(folder, changes)
    assert steps_of(folder) == []
    for number in (1, 2, 3):  # After steps 1, 3 and 6: beside, and at, what is due.
        with monkeypatch.context() as patched:
            stop_at_question(number, patched)
            with pytest.raises(StoppedError, match=r"is saved\. Rerun to resume") as caught:
                train(folder, changes)
        assert caught.value.exit_code == 4
    assert steps_of(folder)[-1] == 6
    resumed = train(folder, changes)
    assert int(resumed.step) == 7
    assert logged(folder) == logged(tmp_path / "whole")
    assert [line["step"] for line in logged(folder)] == [2, 3, 4, 6, 7]
    one, other = (contents(tmp_path / name / "snapshots") for name in ("whole", "parts"))
    assert one == other
    assert {*one} == {"00000000.npz", "00000004.npz", "00000007.npz"}
    best = [(tmp_path / name / "checkpoints/best.json").read_bytes() for name in ("whole", "parts")]
    assert best[0] == best[1]
    opened = run.open_run(folder)
    assert opened.restored(resumed).sha256 == opened.digest(resumed)
    whole = run.open_run(tmp_path / "whole")
    assert_equal_bits(resumed, whole.restored(resumed).state)


@pytest.fixture
def valued(monkeypatch):
    """Makes the metric return the given values, one after the other."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(
            draws,
            "cheap_metric",
            lambda _: lambda samples: Metric("metric_32", "energy_distance", Estimate(next(left))),
        )

    return give


def test_the_best_checkpoint_is_kept_and_a_resumed_run_knows_it(tmp_path, valued):
    changes = {"evaluate.every_steps": 1, "checkpoint.keep": 1, "optimizer.schedule": "constant"}
    valued(3.0, 1.0, math.nan, 2.0)
    train(tmp_path, {**changes, "checkpoint.every_steps": 1})
    assert steps_of(tmp_path) == [2, 4]
    assert run.open_checkpoint(command("sample", tmp_path, checkpoint="best")).step == 2
    valued(1.5, 0.5, 0.7)
    train(tmp_path, {**changes, "checkpoint.every_steps": 100, "train.num_steps": 7})
    assert run.open_checkpoint(command("sample", tmp_path, checkpoint="best")).step == 6
    assert steps_of(tmp_path)[-2:] == [6, 7]


def poisoned(model, step):
    """Puts NaN into the first example of the batch that is drawn at a step."""
    draw, position = model.source.draw, (step - 1) * model.settings.train.batch_size

    def with_nan(arrays, host_batch, key, positions):
        batch = draw(arrays, host_batch, key, positions)
        is_hit = (positions == position).reshape(-1, *(1,) * (batch["real"].ndim - 1))
        return {**batch, "real": jnp.where(is_hit, jnp.nan, batch["real"])}

    return experiment.build(model.settings, model.source._replace(draw=with_nan))


def test_a_diverging_run_stops_keeps_the_last_good_checkpoint_and_resumes_with_a_smaller_rate(
    tmp_path,
):
    changes = {"optimizer.schedule": "constant", "train.num_steps": 8, "log.every_steps": 1}
    changes["checkpoint.every_steps"] = 5
    with run.locked_folder(tmp_path):
        opened, model = program.open_or_create(
            command("train", tmp_path, "swissroll:tiny", changes)
        )
        with pytest.raises(DivergedError, match=r"loss is nan at step 7; step 5 is saved\. Resume"):
            program.fit(poisoned(model, 7), opened)
    # The log contains the interval that diverged, which helps to find the cause.
    assert (logged(tmp_path)[-1]["step"], logged(tmp_path)[-1]["loss"]) == (7, None)
    assert steps_of(tmp_path) == [5]
    train(tmp_path, {"optimizer.learning_rate": 1e-4})
    rates = [line["learning_rate"] for line in logged(tmp_path)]
    np.testing.assert_allclose(rates, [2e-3] * 5 + [1e-4] * 3)


@pytest.mark.parametrize(
    ("output", "name", "value", "expected"),
    [
        ("log_ratio", "loss", np.nan, "loss is nan at step 11"),
        ("log_ratio", "output_real", 60.0, "log ratio .* saturated at 60 at step 11"),
        ("ratio", "output_flowed", -2e4, "mean ratio .* saturated at -2e\\+04 at step 11"),
    ],
)
def test_divergence_is_described_by_the_first_step_and_metric(output, name, value, expected):
    names = ("loss", "grad_norm", "drift_norm", "output_real", "output_flowed")
    values = {n: np.zeros(3) for n in names}
    assert program.find_trouble(12, values, output, Settings()) is None
    values[name] = np.array([0.0, value, value])
    assert re.search(expected, program.find_trouble(12, values, output, Settings()))


@pytest.mark.parametrize(("number", "name"), [("SIGTERM", "SIGTERM"), ("SIGINT", "Ctrl-C")])
def test_the_first_signal_is_heard_and_ignored_ones_stay_ignored(number, name):
    number, hangup = getattr(signal, number), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    own = signal.signal(number, signal.SIG_DFL)  # Programs in the background ignore Ctrl-C.
    before, end = signal.getsignal(number), time.monotonic() + 30.0
    try:
        with StopSignals() as signals:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # As by nohup.
            assert not signals.is_due()
            os.kill(os.getpid(), number)
            while not signals.is_due() and time.monotonic() < end:
                time.sleep(0.01)
            assert signals.heard == name
        assert signal.getsignal(number) is before
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(number, own)


def test_a_second_signal_ends_the_process_at_once_even_in_compiled_code():
    code = (
        "import hashlib, os, signal, threading\n"
        "from experiments.train import StopSignals\n"
        "for seconds in (1, 2):\n"
        "    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "with StopSignals():\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # Minutes outside of Python.
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saving and stopping" in done.stderr


def test_processes_vote_and_stop_after_the_same_number_of_dispatches(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    others = iter([False, False, True, False, False])  # One that another process has heard.
    monkeypatch.setattr(parallel, "any_process", lambda mine: mine or next(others))
    signals = StopSignals()
    assert [signals.is_due() for _ in range(5)] == [False, False, False, False, True]

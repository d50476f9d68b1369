"""A run that diverges stops, or goes back and past what made it diverge, and stays repeatable."""

import shutil

import jax
import numpy as np
import pytest

from benchmarks.faults.injected import poison
from experiments import build
from experiments.build import rollbacks
from experiments.errors import DivergedError
from experiments.storage.workdir import Workdir
from experiments.training import loop, metrics_log

BAD_STEP = 7
CHANGES = {
    "optimizer.schedule": "constant",
    "train.num_steps": 12,
    "train.steps_per_dispatch": 4,
    "log.every_steps": 1,
    "checkpoint.every_steps": 5,
    "checkpoint.keep": 9,
    "snapshot.every_steps": 1_000,
    "train.on_divergence": "rollback",
    "train.rollback_lr_factor": 0.25,
}


@pytest.fixture
def train(tiny):
    """Trains on data of which one batch has a NaN."""

    def run(folder, bad_step=BAD_STEP, **changes):
        workdir = Workdir(folder)
        workdir.create()
        experiment = build.experiment(tiny(changes=CHANGES | changes))
        return loop.train(poison(experiment, bad_step), workdir, "a command")

    return run


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_rollback_leaves_the_bad_batch_out_lowers_the_learning_rate_and_is_logged(
    train, tmp_path, caplog
):
    state = train(tmp_path)
    assert int(state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # Back from step 7 to the checkpoint of step 5: batches 6 and 7 are left out.
    assert tuple(map(float, rollbacks.of(state))) == (1, 2, 0.25)
    assert "loss is nan at step 7; rollback 1 of 3: going on from step 5" in caplog.text
    records = metrics_log.read(Workdir(tmp_path).metrics)
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["rollbacks"] for r in records] == [0] * 5 + [1] * 7
    assert [r["skipped_batches"] for r in records] == [0] * 5 + [2] * 7
    assert records[5]["learning_rate"] == 0.25 * records[4]["learning_rate"]


def test_a_run_that_was_cut_after_a_rollback_equals_the_uninterrupted_one(train, tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", **{"train.num_steps": 10})
    assert_equal_bits(train(tmp_path / "parts"), whole)
    # Cut between the rollback and the next checkpoint: it diverges and goes back once more.
    for step in ("10", "12"):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / step)
    assert_equal_bits(train(tmp_path / "parts"), whole)


def test_before_the_first_checkpoint_a_rollback_goes_to_the_start(train, tmp_path):
    state = train(tmp_path, bad_step=2, **{"train.num_steps": 3})
    assert int(state.step) == 3
    assert int(rollbacks.of(state).num_skipped) == 2


def test_after_the_allowed_number_of_rollbacks_the_run_stops(train, tmp_path):
    # With a limit that every batch exceeds.
    strict = {"train.max_log_ratio": 1e-9, "train.max_rollbacks": 2}
    with pytest.raises(
        DivergedError, match=r"saturated .* after 2 rollbacks; there is no checkpoint yet"
    ):
        train(tmp_path, **strict)


def test_without_being_asked_a_run_does_not_roll_back(train, tmp_path):
    with pytest.raises(DivergedError, match=r"loss is nan at step 7; the last good .* of step 5"):
        train(tmp_path, **{"train.on_divergence": "stop"})

"""A run that diverges stops, or rolls back and skips the bad batches, and stays repeatable."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import command

from experiments import build, run
from experiments.build import rollbacks
from experiments.errors import DivergedError
from experiments.modes.creation import create_or_resume
from experiments.training import divergence, loop, metrics_log

BAD_STEP = 7
LIMITS = {"train.max_log_ratio": 50.0, "train.max_ratio": 1e4}
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


def poisoned(experiment, step):
    """Puts NaN into the first example of the batch that an uninterrupted run draws at a step."""
    draw, position = experiment.source.draw, (step - 1) * experiment.settings["train.batch_size"]

    def with_nan(arrays, host_batch, key, positions):
        batch = draw(arrays, host_batch, key, positions)
        is_hit = (positions == position).reshape(-1, *(1,) * (batch["real"].ndim - 1))
        return {**batch, "real": jnp.where(is_hit, jnp.nan, batch["real"])}

    return dataclasses.replace(experiment, source=experiment.source._replace(draw=with_nan))


def train(folder, bad_step=BAD_STEP, **changes):
    """Trains on data with NaN in one batch."""
    with run.locked_folder(folder):
        asked = command("train", folder, "swissroll:tiny", CHANGES | changes)
        created, experiment = create_or_resume(asked)
        return loop.train(build.ratio_training(poisoned(experiment, bad_step)), created)


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_rollback_skips_the_bad_batch_lowers_the_learning_rate_and_is_logged(tmp_path, caplog):
    state = train(tmp_path)
    assert int(state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # Back from step 7 to the checkpoint of step 5: batches 6 and 7 are skipped.
    assert tuple(map(float, rollbacks.of(state))) == (1, 2, 0.25)
    assert "loss is nan at step 7; rollback 1 of 3: resuming from step 5" in caplog.text
    records = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["rollbacks"] for r in records] == [0] * 5 + [1] * 7
    assert [r["skipped_batches"] for r in records] == [0] * 5 + [2] * 7
    assert records[5]["learning_rate"] == 0.25 * records[4]["learning_rate"]


def test_a_run_that_was_interrupted_after_a_rollback_equals_the_uninterrupted_one(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", **{"train.num_steps": 10})
    assert_equal_bits(train(tmp_path / "parts"), whole)
    # Interrupted between the rollback and the next checkpoint: it diverges and rolls back again.
    for step in ("10", "12"):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / step)
    assert_equal_bits(train(tmp_path / "parts"), whole)


def test_before_the_first_checkpoint_a_rollback_goes_to_the_start(tmp_path):
    state = train(tmp_path, bad_step=2, **{"train.num_steps": 3})
    assert int(state.step) == 3
    assert int(rollbacks.of(state).num_skipped) == 2


def test_after_the_allowed_number_of_rollbacks_the_run_stops(tmp_path):
    # With a limit that every batch exceeds.
    strict = {"train.max_log_ratio": 1e-9, "train.max_rollbacks": 2}
    with pytest.raises(
        DivergedError, match=r"saturated .* after 2 rollbacks; there is no checkpoint yet"
    ) as error:
        train(tmp_path, **strict)
    assert "optimizer.clip_norm=1" in str(error.value)
    # These are set already.
    assert "loss.name=lr" not in str(error.value)
    assert "rollback," not in str(error.value)


def test_a_diverging_run_stops_names_the_step_logs_it_and_keeps_the_last_good_checkpoint(tmp_path):
    before = train(tmp_path, **{"train.num_steps": 5, "train.on_divergence": "stop"})
    with pytest.raises(
        DivergedError, match=r"loss is nan at step 7; the last good checkpoint is of step 5"
    ):
        train(tmp_path, **{"train.on_divergence": "stop"})
    # The log contains the interval that diverged, which helps to find the cause.
    last = metrics_log.read(tmp_path / "metrics.jsonl")[-1]
    assert (last["step"], last["loss"]) == (7, None)
    created = run.open_run(tmp_path)
    with created.checkpoints() as store:
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
    assert divergence.find_trouble(np.arange(10, 13), values, output, LIMITS) is None
    values[name] = np.array([0.0, value, value])
    trouble = divergence.find_trouble(np.arange(10, 13), values, output, LIMITS)
    assert re.search(expected, trouble)

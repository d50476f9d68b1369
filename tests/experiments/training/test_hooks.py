"""The metric during training has no side effects, and the best checkpoint by it is kept."""

import json
import math

import jax
import numpy as np
import pytest
from small_runs import command, start, train

from experiments import run
from experiments.errors import UserError
from experiments.evaluation import cheap
from experiments.evaluation.metrics import Estimate, Metric
from experiments.sampling.opened import open_checkpoint
from experiments.training import metrics_log

NAME = "evaluation/energy_distance_32"


@pytest.fixture
def valued(monkeypatch):
    """Makes the metric return the given values, one after the other."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(
            cheap,
            "cheap_metric",
            lambda *_: Metric("metric_32", "energy_distance", Estimate(next(left))),
        )

    return give


def best(folder):
    with run.open_run(folder).checkpoints() as store:
        return store.best()


def test_evaluation_during_training_changes_no_parameter_and_is_logged(tmp_path):
    plain = train(tmp_path / "plain")
    monitored = train(tmp_path / "monitored", {"evaluate.every_steps": 1})

    jax.tree.map(np.testing.assert_array_equal, monitored, plain)
    records = metrics_log.read(tmp_path / "monitored" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    values = {record["step"]: record[NAME] for record in records}
    found = best(tmp_path / "monitored")
    assert found["value"] == values[found["step"]] == min(values.values())


def test_the_best_checkpoint_is_kept_and_can_be_sampled(tmp_path, valued):
    valued(3.0, 1.0, math.nan, 2.0)
    changes = {"evaluate.every_steps": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 1}
    train(tmp_path, changes)

    assert best(tmp_path)["step"] == 2
    with run.open_run(tmp_path).checkpoints() as store:
        assert store.steps() == [2, 4]
    start("sample", tmp_path, checkpoint="best", num_samples=4)
    record = json.loads((tmp_path / "samples" / "step_2.npz.json").read_text())
    assert record["key"]["step"] == 2


def test_a_resumed_run_knows_its_best_and_drops_the_checkpoint_that_was_best_before(
    tmp_path, valued
):
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
    assert best(tmp_path) == {"metric": "metric_32", "value": 0.5, "step": 6}
    with run.open_run(tmp_path).checkpoints() as store:
        assert store.steps() == [6, 7]


def test_without_evaluation_there_is_no_best_checkpoint_and_the_error_says_how_to_get_one(trained):
    with pytest.raises(UserError, match=r"train with evaluate\.every_steps above 0"):
        open_checkpoint(command("sample", trained.root, checkpoint="best"))


def test_a_crash_while_a_snapshot_is_written_leaves_none(tmp_path, monkeypatch):
    def cut(file, **arrays):
        file.write(b"PK")
        file.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert list((tmp_path / "snapshots").iterdir()) == []

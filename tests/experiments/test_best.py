"""The metric during training: it disturbs nothing, and its best checkpoint is kept."""

import json

import jax
import numpy as np
import pytest
from experiments.request import Request
from experiments.storage import best
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir

from experiments import build, modes
from experiments.errors import UserError
from experiments.evaluation import cheap
from experiments.evaluation.cheap import CheapMetric
from experiments.sampling import runs
from experiments.training import loop, metrics_log

NAME = "evaluation/energy_distance_32"


def train(config, folder):
    workdir = Workdir(folder)
    workdir.create()
    return loop.train(build.experiment(config), workdir, "a command"), workdir


@pytest.fixture
def valued(monkeypatch):
    """Lets the metric take given values, one after the other."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(
            cheap, "cheap_metric", lambda *_: CheapMetric("metric_32", next(left), True)
        )

    return give


def test_evaluation_during_training_changes_no_parameter_and_is_logged(tiny, tmp_path):
    plain, _ = train(tiny(), tmp_path / "plain")
    judged, workdir = train(tiny(changes={"evaluate.every_steps": 1}), tmp_path / "judged")

    jax.tree.map(np.testing.assert_array_equal, judged, plain)
    records = metrics_log.read(workdir.metrics)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    values = {record["step"]: record[NAME] for record in records}
    found = best.read(workdir)
    assert found["value"] == values[found["step"]] == min(values.values())


def test_the_best_checkpoint_outlives_the_newest_ones_and_samples(tiny, tmp_path, valued):
    valued(3.0, 1.0, float("nan"), 2.0)
    config = tiny(
        changes={"evaluate.every_steps": 1, "checkpoint.every_steps": 1, "checkpoint.keep": 1}
    )
    _, workdir = train(config, tmp_path)

    assert best.read(workdir)["step"] == 2
    assert len(list(workdir.best.iterdir())) == 2  # The record, and what it points to.
    store = Checkpoints(workdir.checkpoints, 1)
    assert store.steps() == [4]
    store.close()
    modes.run(Request("sample", config, tmp_path, checkpoint="best", num_samples=4))
    record = json.loads((workdir.samples / "step_2.json").read_text())
    assert record["checkpoint_step"] == 2


def test_a_run_that_goes_on_knows_what_its_best_was(tiny, tmp_path, valued):
    changes = {"evaluate.every_steps": 1, "optimizer.schedule": "constant"}
    valued(3.0, 1.0, 2.0, 2.0)
    train(tiny(changes=changes), tmp_path)
    valued(1.5, 0.5)
    _, workdir = train(tiny(changes={**changes, "train.num_steps": 6}), tmp_path)
    assert best.read(workdir) == {"folder": "2", "metric": "metric_32", "value": 0.5, "step": 6}


def test_without_evaluation_there_is_no_best_checkpoint_and_the_error_says_how_to_get_one(
    trained, tiny
):
    with pytest.raises(UserError, match=r"train with evaluate\.every_steps above 0"):
        runs.restore(build.experiment(tiny()), trained, "best")

"""The one training loop: it resumes exactly, stops on nonsense, and loses nothing."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from experiments.build.options import Guard
from experiments.request import Request
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir

from experiments import build, modes
from experiments.errors import DivergedError, UserError
from experiments.training import divergence, loop, metrics_log

# Those whose data are built in; tests/data trains on images that it makes.
CONFIGS = ("swissroll", "swissroll_lsif", "8gaussians", "25gaussians", "digits", "digits_pair")


def train(config, folder):
    workdir = Workdir(folder)
    workdir.create()
    return loop.train(build.experiment(config), workdir, "a command")


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_samples_and_reports_in_its_tiny_variant(name, tiny, tmp_path, capsys):
    modes.run(Request("train", tiny(name), tmp_path, f"train {name}"))
    workdir = Workdir(tmp_path)
    figures = json.loads(workdir.evaluation.read_text())
    assert figures["step"] == tiny(name)["train"]["num_steps"]
    assert "report:" in capsys.readouterr().out
    page = workdir.report.read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert f"train {name}" in page


def test_a_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(tiny, tmp_path):
    changes = {"optimizer.schedule": "constant", "train.num_steps": 5, "checkpoint.every_steps": 1}
    whole = train(tiny("digits", changes), tmp_path / "whole")
    train(tiny("digits", {**changes, "train.num_steps": 3}), tmp_path / "parts")
    parts = train(tiny("digits", changes), tmp_path / "parts")
    assert_equal_bits(parts, whole)


def test_how_many_steps_a_dispatch_takes_does_not_change_a_number(tiny, tmp_path):
    one = train(tiny(changes={"train.steps_per_dispatch": 1}), tmp_path / "one")
    three = train(tiny(changes={"train.steps_per_dispatch": 3}), tmp_path / "three")
    assert_equal_bits(one.variables, three.variables)


def test_a_config_that_does_not_fit_the_checkpoint_is_refused_and_both_values_are_named(
    tiny, tmp_path
):
    train(tiny(), tmp_path)
    with pytest.raises(UserError, match=r"flow.step_size is 0.7 but was 0.1"):
        train(tiny(changes={"flow.step_size": 0.7}), tmp_path)
    assert json.loads(Workdir(tmp_path).config.read_text())["settings"]["flow.step_size"] == 0.1


def test_a_longer_run_may_not_change_a_schedule_that_depends_on_its_length(tiny, tmp_path):
    train(tiny(changes={"optimizer.schedule": "cosine"}), tmp_path)
    with pytest.raises(UserError, match=r"train\.num_steps is 8 but was 4"):
        train(tiny(changes={"optimizer.schedule": "cosine", "train.num_steps": 8}), tmp_path)


def test_a_diverging_loss_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(
    tiny, tmp_path
):
    changes = {"train.num_steps": 4, "checkpoint.every_steps": 2, "optimizer.schedule": "constant"}
    before = train(tiny(changes={**changes, "train.num_steps": 2}), tmp_path)
    broken = build.experiment(tiny(changes=changes))
    broken = dataclasses.replace(
        broken, constants=broken.constants._replace(data=np.float32("nan"))
    )
    draw = broken.source.draw
    broken = dataclasses.replace(
        broken,
        make_train_step=_with_draw(
            broken,
            lambda arrays, host, key, positions: {
                "real": draw((), host, key, positions)["real"] + arrays
            },
        ),
    )
    with pytest.raises(
        DivergedError, match="loss is nan at step 3; the last good checkpoint is of"
    ):
        loop.train(broken, Workdir(tmp_path), "a command")
    store = Checkpoints(Workdir(tmp_path).checkpoints, 3)
    assert store.steps() == [2]
    kept = store.restore(before, broken.settings, free=("train.num_steps",))
    store.close()
    assert_equal_bits(kept, before)


def _with_draw(experiment, draw):
    return lambda problem: experiment.make_train_step.func(
        problem, **{**experiment.make_train_step.keywords, "draw": draw}
    )


@pytest.mark.parametrize(
    ("output", "name", "value", "expected"),
    [
        ("log_ratio", "loss", np.nan, "loss is nan at step 11"),
        ("log_ratio", "output_real", 60.0, "log ratio .* saturated at 60 at step 11"),
        ("ratio", "output_flowed", -2e4, "mean ratio .* saturated at -2e\\+04 at step 11"),
        ("log_ratio", "grad_norm", np.inf, "grad_norm is inf at step 11"),
    ],
)
def test_trouble_is_told_by_the_first_step_and_metric(output, name, value, expected):
    names = ("loss", "grad_norm", "drift_norm", "output_real", "output_flowed")
    values = {n: np.zeros(3) for n in names}
    assert divergence.find_trouble(np.arange(10, 13), values, output, Guard(50.0, 1e4)) is None
    values[name] = np.array([0.0, value, value])
    trouble = divergence.find_trouble(np.arange(10, 13), values, output, Guard(50.0, 1e4))
    assert re.search(expected, trouble)


def test_metrics_are_json_lines_and_a_resumed_run_has_no_double_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = metrics_log.JsonLines(path, resume_step=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # Cut by a crash.
    second = metrics_log.JsonLines(path, resume_step=2)
    second.write(3, {"loss": float("nan")})
    second.close()
    lines = metrics_log.read(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] is None


def test_the_log_has_the_metrics_that_a_person_watches(trained):
    wanted = {"loss", "ratio_real", "ratio_flowed", "grad_norm", "drift_norm"}
    wanted |= {"steps_per_second", "learning_rate"}
    records = metrics_log.read(trained.metrics)
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        assert wanted <= record.keys()


def test_tensorboard_gets_the_same_scalars(tiny, tmp_path):
    train(tiny(changes={"log.tensorboard": True}), tmp_path)
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert events
    assert b"ratio_flowed" in events[0].read_bytes()


def test_a_missing_logger_is_told_with_how_to_install_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[wandb\]'"):
        train(tiny(changes={"log.wandb": "offline"}), tmp_path)


def test_a_workdir_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run").create()


def test_runs_in_folders_of_one_name_have_curves_of_their_own(tmp_path, monkeypatch):
    ids = []

    class Module:
        @staticmethod
        def init(**arguments):
            ids.append(arguments["id"])

    monkeypatch.setattr(metrics_log, "_import", lambda name, extra: Module)
    for folder in ("a/seed_0", "b/seed_0", "a/seed_0"):
        metrics_log.Wandb(tmp_path / folder, "offline", {})
    assert ids[0] == ids[2] != ids[1]


def test_a_crash_while_a_snapshot_is_written_leaves_none(tiny, tmp_path, monkeypatch):
    def cut(file, **arrays):
        opened = file.open("wb") if isinstance(file, Path) else file
        opened.write(b"PK")
        opened.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path)
    assert Workdir(tmp_path).snapshot_files(10) == []

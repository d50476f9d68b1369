"""The training loop: it resumes exactly, reports its progress, and loses nothing."""

import re
import time

import jax
import numpy as np
import pytest
from small_runs import command, train

from experiments import build, run
from experiments.errors import UserError
from experiments.modes.creation import create_or_resume
from experiments.training import loop, metrics_log
from experiments.training.loop import Hook


def assert_equal_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path):
    changes = {"optimizer.schedule": "constant", "train.num_steps": 5, "checkpoint.every_steps": 1}
    whole = train(tmp_path / "whole", changes, "digits:tiny")
    train(tmp_path / "parts", {**changes, "train.num_steps": 3}, "digits:tiny")
    parts = train(tmp_path / "parts", changes, "digits:tiny")
    assert_equal_bits(parts, whole)


def test_the_number_of_steps_per_dispatch_does_not_change_a_number(tmp_path):
    one = train(tmp_path / "one", {"train.steps_per_dispatch": 1})
    three = train(tmp_path / "three", {"train.steps_per_dispatch": 3})
    assert_equal_bits(one.variables, three.variables)


def test_settings_that_do_not_fit_the_run_are_refused_and_both_values_are_named(trained):
    before = trained.settings
    with pytest.raises(UserError, match=r"flow.step_size is 0.7 but was 0.1"):
        train(trained.root, {"flow.step_size": 0.7})
    assert run.open_run(trained.root).settings == before


def test_a_longer_run_may_not_change_a_schedule_that_depends_on_its_length(trained):
    assert trained.settings["optimizer.schedule"] == "cosine"
    with pytest.raises(UserError, match=r"train\.num_steps is 8 but was 4"):
        train(trained.root, {"train.num_steps": 8})


def run_with_hook(folder, every, act, **changes):
    with run.locked_folder(folder):
        asked = command("train", folder, "swissroll:tiny", changes)
        created, experiment = create_or_resume(asked)
        return loop.train(build.ratio_training(experiment), created, [Hook(every, act)])


def test_a_hook_runs_at_its_multiples_and_at_the_end_and_its_result_is_logged(tmp_path):
    seen = []

    def act(moment):
        seen.append(moment.step)
        return {"seen": float(len(seen))}

    run_with_hook(tmp_path, 3, act, **{"log.every_steps": 100})
    assert seen == [3, 4]
    records = metrics_log.read(tmp_path / "metrics.jsonl")
    assert [(record["step"], record["seen"]) for record in records] == [(3, 1.0), (4, 2.0)]


def test_throughput_is_that_of_training_without_the_time_of_hooks_and_saves(tmp_path):
    changes = {"train.num_steps": 12, "train.steps_per_dispatch": 1, "log.every_steps": 1}
    run_with_hook(tmp_path, 2, lambda _: time.sleep(0.5), **changes)
    # The first step compiles. A hook of half a second at every second step must not count.
    rates = [r["steps_per_second"] for r in metrics_log.read(tmp_path / "metrics.jsonl")][1:]
    assert min(rates) > 2.0


def test_the_bar_moves_at_every_dispatch_and_shows_the_time_of_compilation(tmp_path, monkeypatch):
    shown = []

    class Bar(loop.tqdm):
        def update(self, n=1):
            shown.append(n)
            super().update(n)

        def set_description(self, desc=None, refresh=True):
            shown.append(desc)

    monkeypatch.setattr(loop, "tqdm", Bar)
    every = ("log", "snapshot", "checkpoint")
    rarely = {f"{name}.every_steps": 100 for name in every} | {"train.steps_per_dispatch": 1}
    train(tmp_path, rarely)
    assert re.fullmatch(r"compiled in \d+\.\d s", shown[0])
    assert shown[1:5] == [1, 1, 1, 1]
    assert shown[5].startswith("loss ")


def test_a_workdir_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "README.md").write_text("")
    for folder in (tmp_path / "README.md", tmp_path / "README.md" / "run"):
        with pytest.raises(UserError, match=f"--workdir={folder} cannot be written"):
            train(folder)
    assert (tmp_path / "README.md").read_text() == ""

"""SIGTERM asks for an end in good order once, and ends the process at once the second time."""

import os
import signal

import numpy as np
import pytest
from small_runs import train

from experiments import run
from experiments.errors import PreemptedError
from experiments.training.preemption import Preemption


def test_the_first_sigterm_is_heard_and_a_second_would_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_due()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def stop_at_question(number, monkeypatch):
    asked = iter(range(1, 100))
    monkeypatch.setattr(Preemption, "is_due", lambda _: next(asked) >= number)


def test_before_the_first_step_nothing_is_saved_and_nothing_else_is_claimed(tmp_path, monkeypatch):
    stop_at_question(1, monkeypatch)
    with pytest.raises(
        PreemptedError, match="before the first step; the same command starts again"
    ):
        train(tmp_path)
    with run.open_run(tmp_path).checkpoints() as store:
        assert store.steps() == []


def test_a_run_that_is_asked_to_stop_saves_its_step_and_resumes_to_the_same_numbers(
    tmp_path, monkeypatch
):
    changes = {"checkpoint.every_steps": 100}
    whole = train(tmp_path / "whole", changes)
    with monkeypatch.context() as patched:
        stop_at_question(2, patched)
        with pytest.raises(PreemptedError, match="at step 2, which is saved") as caught:
            train(tmp_path / "parts", changes)
    assert caught.value.exit_code == 4
    with run.open_run(tmp_path / "parts").checkpoints() as store:
        assert store.steps() == [2]
    resumed = train(tmp_path / "parts", changes)
    np.testing.assert_array_equal(
        resumed.variables["params"]["mlp_0"]["kernel"], whole.variables["params"]["mlp_0"]["kernel"]
    )


def test_a_resumed_run_that_is_stopped_before_its_first_step_names_the_saved_one(
    tmp_path, monkeypatch
):
    changes = {"optimizer.schedule": "constant"}
    train(tmp_path, changes)
    stop_at_question(1, monkeypatch)
    with pytest.raises(PreemptedError, match="at step 4, which is saved"):
        train(tmp_path, {**changes, "train.num_steps": 8})

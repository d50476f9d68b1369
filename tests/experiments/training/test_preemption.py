"""The first SIGTERM asks for an orderly end, and the second one ends the process immediately."""

import os
import signal

import jax
import numpy as np
import pytest
from small_runs import contents, train

from benchmarks.faults import crashes
from experiments import run
from experiments.errors import PreemptedError
from experiments.training import loop
from experiments.training.preemption import Preemption


def test_the_first_sigterm_is_handled_and_a_second_would_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_due()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_step_that_a_program_reports_as_saved_is_on_disk():
    assert "before the first step" in loop._when_preempted(0, 0, has_saved=False)
    assert "at step 7, which is saved" in loop._when_preempted(7, 7, has_saved=True)
    assert "there is no complete checkpoint yet" in loop._when_interrupted(None)
    assert "resumes from step 7" in loop._when_interrupted(7)


def stop_at_question(number, monkeypatch):
    asked = iter(range(1, 100))
    monkeypatch.setattr(Preemption, "is_due", lambda _: next(asked) >= number)


def test_before_the_first_step_nothing_is_saved_and_the_message_says_so(tmp_path, monkeypatch):
    stop_at_question(1, monkeypatch)
    with pytest.raises(PreemptedError, match="before the first step; the same command starts"):
        train(tmp_path)
    with run.open_run(tmp_path).checkpoints() as store:
        assert store.steps() == []


def test_a_run_that_is_stopped_saves_its_step_and_resumes_to_the_same_numbers(
    tmp_path, monkeypatch
):
    every = ("snapshot.every_steps", "evaluate.every_steps")
    changes = {"checkpoint.every_steps": 100, **dict.fromkeys(every, 2)}
    whole = train(tmp_path / "whole", changes)
    with monkeypatch.context() as patched:
        stop_at_question(2, patched)
        with pytest.raises(PreemptedError, match="at step 2, which is saved") as caught:
            train(tmp_path / "parts", changes)
    assert caught.value.exit_code == 4
    with run.open_run(tmp_path / "parts").checkpoints() as store:
        assert store.steps() == [2]
    resumed = train(tmp_path / "parts", changes)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    # What is due at the step of the stop happens before it, as the snapshot and the metric here.
    one, other = (contents(tmp_path / name / "snapshots") for name in ("whole", "parts"))
    assert one == other
    assert {*one} == {"00000002.npz", "00000004.npz"}
    best = [(tmp_path / name / "checkpoints/best.json").read_bytes() for name in ("whole", "parts")]
    assert best[0] == best[1]


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_sigterm_saves_the_step_and_ends_with_a_code_of_its_own(tmp_path):
    assert not crashes.terminate(tmp_path).complaints


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_sigterm_while_the_first_step_is_compiled_promises_nothing(tmp_path):
    assert not crashes.terminate_early(tmp_path).complaints


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_ctrl_c_ends_with_130_and_one_line_at_any_moment(tmp_path):
    assert not crashes.interrupt(tmp_path).complaints

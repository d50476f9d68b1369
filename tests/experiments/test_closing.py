"""Closing leaves nothing behind and never waits for ever; reading changes nothing."""

import errno
import shutil
import threading
import time

import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments import checkpoints
from experiments.checkpoints import Checkpoints
from experiments.errors import UserError
from experiments.run import locked_folder
from fdrl_jax.training import state

RUN = "digest of a run"


def state_at(step):
    values = np.full((8, 4), step, np.float32)
    first = state.create({"params": {"kernel": values}}, optax.sgd(0.1))
    return first._replace(step=np.asarray(step, np.int32))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_that_is_no_longer_the_best_is_removed(tmp_path):
    with Checkpoints(tmp_path, RUN, keep=1) as store:
        store.save(state_at(1))
        store.record_best(1, "metric", 1.0)
        store.save(state_at(2))
        store.wait()
        assert store.steps() == [1, 2]
        store.save(state_at(3))
        store.record_best(3, "metric", 0.5)
    assert names(tmp_path) == ["3", "best.json"]


def test_remains_of_a_crash_are_removed_when_training_ends(tmp_path):
    with Checkpoints(tmp_path, RUN, keep=1) as store:
        store.save(state_at(4))
    for left in ("9.orbax-checkpoint-tmp", "2", "damaged_3"):
        shutil.copytree(tmp_path / "4", tmp_path / left)
    (tmp_path / "2" / "commit_success.txt").unlink()
    with Checkpoints(tmp_path, RUN, keep=1) as store:
        assert int(store.restore(state_at(0)).state.step) == 4
    assert names(tmp_path) == ["4", "damaged_3"]


def test_a_reader_removes_nothing_and_saves_nothing(tmp_path):
    with Checkpoints(tmp_path, RUN, keep=2) as store:
        for step in (1, 2):
            store.save(state_at(step))
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    before = names(tmp_path)
    with Checkpoints(tmp_path, RUN, keep=1, read_only=True) as store:
        assert int(store.restore(state_at(0)).state.step) == 2
        with pytest.raises(ValueError, match="read_only"):
            store.save(state_at(3))
    assert names(tmp_path) == before


def test_a_checkpoint_that_is_removed_file_by_file_while_it_is_read_is_not_damaged(
    tmp_path, monkeypatch, caplog
):
    """Its mark is not the first file to be removed."""
    with Checkpoints(tmp_path, RUN, keep=2) as store:
        for step in (1, 2):
            store.save(state_at(step))
    with Checkpoints(tmp_path, RUN, read_only=True) as reader:
        read = reader._read

        def read_while_it_goes(step, template):
            if step == 2 and (tmp_path / "2" / "state").exists():
                shutil.rmtree(tmp_path / "2" / "state")
                threading.Timer(0.1, shutil.rmtree, (tmp_path / "2",)).start()
            return read(step, template)

        monkeypatch.setattr(reader, "_read", read_while_it_goes)
        assert int(reader.restore(state_at(0)).state.step) == 1
    assert "damaged" not in caplog.text


def test_a_reader_opens_no_checkpoint_that_it_does_not_restore(tmp_path, monkeypatch):
    """Another program may remove them one after the other."""
    with Checkpoints(tmp_path, RUN) as store:
        store.save(state_at(1))
    monkeypatch.setattr(ocp.path.step.Metadata, "commit_timestamp", property(lambda _: 1 / 0))
    with Checkpoints(tmp_path, RUN, read_only=True) as reader:
        assert reader.steps() == [1]


def test_a_failed_save_says_which_checkpoint_is_complete(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, RUN, keep=2) as store:
        store.save(state_at(7))
        store.wait()

        def fail(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(store._manager, "save", fail)
            with pytest.raises(UserError, match=r"No space left .*; that of step 7 is intact"):
                store.save(state_at(8))


def test_after_an_error_closing_waits_only_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_PATIENCE_SECONDS", 0.2)
    answer = threading.Event()
    store = Checkpoints(tmp_path, RUN)
    close = store._manager.close
    monkeypatch.setattr(store._manager, "close", answer.wait)
    started = time.monotonic()
    with pytest.raises(UserError, match="the first error"), store:
        raise UserError("the first error")
    assert time.monotonic() - started < 10
    answer.set()
    close()


def test_a_rejected_command_leaves_no_new_folder_and_no_trace_in_an_existing_one(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").touch()
    for name in ("new", "old"):
        with pytest.raises(UserError, match="rejected"), locked_folder(tmp_path / name):
            raise UserError("rejected")
    assert names(tmp_path) == ["old"]
    assert "mine" in names(tmp_path / "old")


def test_the_error_that_ended_a_run_is_reported_even_if_its_new_folder_is_gone(tmp_path):
    @locked_folder(tmp_path / "new")
    def removed():
        shutil.rmtree(tmp_path / "new")
        raise UserError("was removed")

    with pytest.raises(UserError, match="was removed"):
        removed()


def test_one_program_has_the_lock_of_a_folder(tmp_path):
    with (
        locked_folder(tmp_path / "run"),
        pytest.raises(UserError, match="is in use by process"),
        locked_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run").is_dir()

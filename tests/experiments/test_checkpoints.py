"""A damaged checkpoint is never taken for a good one, and the one before it is found."""

import gc
import itertools
import logging
import shutil

import jax
import numpy as np
import optax
import pytest
from experiments.storage.checkpoints import Checkpoints

from benchmarks.faults import damage
from experiments import schema
from experiments.errors import UserError
from fdrl_jax import state

SETTINGS = {"flow.step_size": 0.1}

# Orbax leaves coroutines behind that failed beside the one whose error it raises.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_at(step):
    values = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    first = state.create({"params": {"kernel": values}}, optax.adam(0.1))
    return first._replace(step=np.asarray(step, np.int32))


def restore(folder, step=None):
    store = Checkpoints(folder, keep=3)
    try:
        return store.restore(state_at(0), SETTINGS, free=(), step=step)
    finally:
        store.close()
        gc.collect()  # Here, where warnings of what is left behind are expected.


def is_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture
def two_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    store = Checkpoints(folder, keep=3)
    for step in (1, 2):
        store.save(state_at(step), SETTINGS)
    store.close()
    return folder


@pytest.mark.slow
def test_however_a_file_of_the_newest_is_damaged_no_wrong_number_comes_back(
    two_checkpoints, caplog
):
    fallbacks = 0
    # Four ways for each file: every third meets all files, and all ways in turn.
    for what in itertools.islice(damage.each(two_checkpoints / "2"), 0, None, 3):
        caplog.clear()
        restored = restore(two_checkpoints)
        if is_equal(restored, state_at(2)):  # Not all that Orbax writes is read.
            continue
        assert is_equal(restored, state_at(1)), what
        assert f"{two_checkpoints / '2'} is damaged" in caplog.text, what
        fallbacks += 1
    assert fallbacks > 7
    assert is_equal(restore(two_checkpoints), state_at(2))


def test_flipped_bits_in_the_arrays_are_found(two_checkpoints, caplog):
    damage.flip(damage.largest_file(two_checkpoints / "2"))
    assert is_equal(restore(two_checkpoints), state_at(1))
    assert "2 is damaged (the arrays are not what was saved)" in caplog.text


@pytest.mark.parametrize("kept", [(), ("settings", "data", "state")])
def test_a_checkpoint_without_a_mark_of_completion_falls_back(two_checkpoints, kept, caplog):
    for path in (two_checkpoints / "2").iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_equal(restore(two_checkpoints), state_at(1))
    assert "2 is damaged (commit_success.txt is missing)" in caplog.text


def test_a_damaged_checkpoint_asked_for_by_its_step_is_an_error(two_checkpoints):
    damage.delete(two_checkpoints / "1" / "commit_success.txt")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1\] .* is intact"):
        restore(two_checkpoints, step=1)


def test_where_no_checkpoint_is_intact_training_does_not_silently_start_anew(two_checkpoints):
    for step in "12":
        damage.delete(two_checkpoints / step / "commit_success.txt")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\] .* is intact; remove"):
        restore(two_checkpoints)


def test_a_run_that_fell_back_saves_the_damaged_step_anew(two_checkpoints, caplog):
    damage.delete(two_checkpoints / "2" / "commit_success.txt")
    store = Checkpoints(two_checkpoints, keep=3)
    restored = store.restore(state_at(0), SETTINGS, free=())
    store.set_aside_after(int(restored.step))
    store.save(state_at(2), SETTINGS)
    store.close()
    caplog.clear()
    assert is_equal(restore(two_checkpoints), state_at(2))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert (two_checkpoints / "damaged_2").is_dir()


def test_a_checkpoint_from_before_a_key_was_there_fits_only_a_run_that_does_what_it_did(
    two_checkpoints,
):
    store = Checkpoints(two_checkpoints, keep=3)
    same = {**SETTINGS, **schema.LATER_KEYS}
    assert store.restore(state_at(0), same, free=()) is not None
    with pytest.raises(UserError, match=r"flow.step_size_decay is 0\.5 but was 1\.0"):
        store.restore(state_at(0), {**same, "flow.step_size_decay": 0.5}, free=())
    store.close()

"""Damaged checkpoints are never restored, and intact ones are never reported as damaged."""

import contextlib
import errno
import gc
import itertools
import json
import logging
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from benchmarks.faults import damage
from experiments import checkpoints
from experiments.checkpoints import Checkpoints
from experiments.errors import UserError
from experiments.files import sha256_of_json
from experiments.training import loop
from fdrl_jax.training import parallel, state

RUN = "digest of a run"

# If several of Orbax's coroutines fail, it raises the error of one and does not await the others.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def _warnings_about_coroutines_come_here():
    """Collects what is left at the end, where Python's warnings about it are still ignored."""
    yield
    gc.collect()


def state_at(step):
    values = np.random.default_rng(step).normal(size=(64, 8)).astype(np.float32)
    first = state.create({"params": {"kernel": values}}, optax.adam(0.1))
    return first._replace(step=np.asarray(step, np.int32))


@contextlib.contextmanager
def opened(folder, keep=3, run=RUN):
    with contextlib.closing(Checkpoints(folder, run, keep)) as store:
        yield store


def restore(folder, which=None, run=RUN):
    with opened(folder, run=run) as store:
        return store.restore(state_at(0), which).state


def is_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of the steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    with opened(folder) as store:
        for step in (1, 2):
            store.save(state_at(step))
    return folder


def test_a_checkpoint_that_is_replaced_right_after_the_listing_is_not_missed(two, monkeypatch):
    marks = iter([[], list(two.glob("*/commit_success.txt"))])  # The first look finds none.
    with contextlib.closing(Checkpoints(two, RUN, read_only=True)) as store:
        monkeypatch.setattr(type(two), "glob", lambda *_: next(marks))
        assert store.steps() == [1, 2]


@pytest.mark.slow
def test_however_a_file_of_the_newest_is_damaged_no_wrong_number_comes_back(two, caplog):
    fallbacks = 0
    # There are four ways for each file; every third covers all files, and all ways in turn.
    for what in itertools.islice(damage.each(two / "2"), 0, None, 3):
        caplog.clear()
        restored = restore(two)
        if is_equal(restored, state_at(2)):  # Orbax writes files that it does not read.
            continue
        assert is_equal(restored, state_at(1)), what
        # A checkpoint without its mark counts as incomplete.
        assert f"{two / '2'} is damaged" in caplog.text or "commit_success" in what, what
        fallbacks += 1
    assert fallbacks > 5
    assert is_equal(restore(two), state_at(2))


def test_what_was_saved_comes_back(two):
    with opened(two) as store:
        assert store.steps() == [1, 2]
        restored = store.restore(state_at(0), 1)
    assert is_equal(restored.state, state_at(1))


def test_a_record_with_the_position_in_the_data_which_is_no_longer_saved_is_read(two):
    file = two / "2" / "record" / "metadata"
    record = json.loads(file.read_text()) | {"data": {"num_batches": 2, "identity": "x"}}
    del record["sha256"]
    file.write_text(json.dumps({**record, "sha256": sha256_of_json(record)}))
    assert is_equal(restore(two, 2), state_at(2))


def test_flipped_bits_in_the_arrays_are_found(two, caplog):
    damage.flip(damage.largest_file(two / "2"))
    assert is_equal(restore(two), state_at(1))
    assert "2 is damaged" in caplog.text


@pytest.mark.parametrize("kept", [(), ("record", "state")])
def test_a_checkpoint_without_a_mark_of_completion_does_not_count(two, kept):
    for path in (two / "2").iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert is_equal(restore(two), state_at(1))
    with opened(two) as store:
        assert store.steps() == [1]


def test_a_requested_damaged_checkpoint_is_an_error_with_the_good_ones_and_is_kept(two):
    damage.flip(damage.largest_file(two / "2"))
    with pytest.raises(
        UserError, match=r"checkpoints/2 is damaged .*; other checkpoints: \[1\]"
    ) as caught:
        restore(two, 2)
    assert "remove" not in str(caught.value)
    assert is_equal(restore(two, 1), state_at(1))
    assert (two / "2").is_dir()


def test_if_no_checkpoint_is_intact_training_does_not_silently_start_again(two):
    for step in "12":
        damage.flip(damage.largest_file(two / step))
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\] .* is intact; remove"):
        restore(two)


def test_a_run_that_fell_back_saves_the_damaged_step_again(two, caplog):
    damage.flip(damage.largest_file(two / "2"))
    with opened(two) as store:
        restored = store.restore(state_at(0)).state
        store.set_aside_after(int(restored.step))
        store.save(state_at(2))
    caplog.clear()
    assert is_equal(restore(two), state_at(2))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert (two / "damaged_2").is_dir()


def test_folders_without_a_mark_do_not_hinder_a_run_that_starts_again(tmp_path):
    (tmp_path / "200" / "state").mkdir(parents=True)
    training = SimpleNamespace(state_shapes=lambda: state_at(0), init_state=lambda: state_at(0))
    with opened(tmp_path) as store:
        assert int(loop._newest(training, store).step) == 0
        store.save(state_at(100))
        store.wait()
        assert store.steps() == [100]
    assert (tmp_path / "damaged_200").is_dir()


def test_a_step_that_orbax_would_skip_is_an_error(two):
    with (
        opened(two) as store,
        pytest.raises(UserError, match=r"step 1 is not after 2\); that of step 2 is intact"),
    ):
        store.save(state_at(1))


def test_a_best_checkpoint_that_was_set_aside_no_longer_counts(tmp_path):
    with opened(tmp_path) as store:
        store.save(state_at(1))
        store.record_best(1, "metric", 1.0)
        store.save(state_at(2))
        store.record_best(2, "metric", 0.5)
    damage.flip(damage.largest_file(tmp_path / "2"))
    with opened(tmp_path) as store:
        assert store.best()["step"] == 2
        store.set_aside_after(int(store.restore(state_at(0)).state.step))
        assert store.best() is None
        with pytest.raises(UserError, match="no best checkpoint"):
            store.restore(state_at(0), "best")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (MemoryError("full"), MemoryError, "full"),
        (OSError(errno.EIO, "x"), UserError, "2 cannot be read: Input/output error"),
        (ValueError("os_error_code='116'"), UserError, "2 cannot be read: Stale file handle"),
        (OSError(errno.EMFILE, "x"), UserError, "2 cannot be read: Too many open files"),
    ],
)
def test_an_error_of_the_machine_is_not_damage(two, monkeypatch, error, expected, message):
    with opened(two) as store:

        def fail(*args, **kwargs):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(store._manager, "restore", fail)
            with pytest.raises(expected, match=message):
                store.restore(state_at(0))
        assert is_equal(store.restore(state_at(0)).state, state_at(2))
    assert sorted(path.name for path in two.iterdir()) == ["1", "2"]


def test_a_checkpoint_that_training_removes_meanwhile_is_replaced_by_the_newer_one(
    two, monkeypatch
):
    """The view of a sampler during training that keeps one checkpoint."""
    with opened(two) as reader, opened(two, keep=1) as writer:
        seen, read = [], reader._read

        def rotate(step, template):
            seen.append(step)
            if len(seen) == 1:
                writer.save(state_at(3))
                writer.wait()
            return read(step, template)

        monkeypatch.setattr(reader, "_read", rotate)
        restored = reader.restore(state_at(0)).state
    assert seen == [2, 3]
    assert is_equal(restored, state_at(3))


def test_a_named_checkpoint_that_is_removed_meanwhile_is_not_called_damaged(two, monkeypatch):
    with opened(two) as store:
        steps = store._agreed_steps

        def rotate():
            found = steps()
            shutil.rmtree(two / "2", ignore_errors=True)
            return found

        monkeypatch.setattr(store, "_agreed_steps", rotate)
        with pytest.raises(UserError, match=r"no checkpoint of step 2 .* available steps: \[1\]"):
            store.restore(state_at(0), 2)


def test_processes_that_see_different_checkpoints_must_share_the_folder(two, monkeypatch):
    monkeypatch.setattr(parallel, "same_on_all_processes", lambda _: False)
    with pytest.raises(UserError, match=r"see different checkpoints .* one shared --workdir"):
        restore(two)


def test_a_checkpoint_of_another_run_is_refused(two):
    with pytest.raises(UserError, match="belongs to another run"):
        restore(two, run="digest of another one")


def test_the_error_for_a_missing_step_lists_those_that_exist(two):
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .* available steps: \[1, 2\]"):
        restore(two, 3)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"step": "2", "metric": "m", "value": 1}',
        '{"step": 1}',
        '{"step": 1, "metric": 3}',
    ],
)
def test_a_record_of_the_best_that_was_edited_is_named(two, content):
    (two / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json is damaged"), opened(two) as store:
        store.best()


@pytest.mark.parametrize("name", ["a[1]", "b*", "c?", "d\\e"])
def test_a_path_that_cannot_be_read_back_is_refused_immediately(tmp_path, name):
    with pytest.raises(UserError, match="checkpoints cannot be read back from a path with"):
        checkpoints.Checkpoints(tmp_path / name, RUN)
    assert not (tmp_path / name).exists()


def test_a_failed_save_names_the_newest_good_checkpoint(two, monkeypatch):
    with opened(two) as store:
        full = OSError(errno.ENOSPC, "x")
        with monkeypatch.context() as patched:

            def fail(*args, **kwargs):
                raise full

            patched.setattr(store._manager, "save", fail)
            with pytest.raises(UserError, match=r"No space left on device.*step 2 is intact"):
                store.save(state_at(3))

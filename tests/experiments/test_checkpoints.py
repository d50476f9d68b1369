"""Damaged checkpoints are never restored, and intact ones are never reported as damaged."""

import gc
import shutil

import jax
import numpy as np
import optax
import pytest

from experiments.checkpoints import Checkpoints, digest_of
from experiments.errors import UserError
from fdrl_jax.training import state

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


def opened(folder, keep=3, run=RUN):
    return Checkpoints(folder, run, keep)


def restore(folder, which=None, run=RUN):
    """Restores as commands do that only read the run."""
    with opened(folder, None, run) as store:
        found = store.restore(state_at(0), which)
    return None if found is None else found.state


def is_equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def damage(folder):
    """Flips bits in the file with the arrays, a quarter into it: Orbax does not read all of it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    first = len(content) // 4
    for i in range(first, min(len(content), first + 64)):
        content[i] ^= 0xFF
    file.write_bytes(content)


@pytest.fixture(scope="module")
def _saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder) as store:
        store.save(state_at(1))
        store.save(state_at(2), {"loss": [0.5, 0.25]})
    return folder


@pytest.fixture
def two(_saved, tmp_path):
    """A folder with checkpoints of the steps 1 and 2."""
    return shutil.copytree(_saved, tmp_path / "checkpoints")


def test_what_was_saved_comes_back_with_its_digest(two):
    with opened(two) as store:
        assert store.steps() == [1, 2]
        newest, first = store.restore(state_at(0)), store.restore(state_at(0), 1)
    assert is_equal(newest.state, state_at(2))
    assert is_equal(first.state, state_at(1))
    assert newest.sha256 == digest_of(RUN, state_at(2)) != first.sha256
    assert (newest.window, first.window) == ({"loss": [0.5, 0.25]}, {})


def test_the_newest_and_the_best_are_kept(tmp_path):
    with opened(tmp_path, keep=2) as store:
        for step in range(1, 5):
            store.save(state_at(step))
            if step == 1:
                store.record_best(step, "metric", 1.5)
        store.wait()
        assert store.steps() == [1, 3, 4]
        assert store.best() == {"step": 1, "metric": "metric", "value": 1.5}
        assert is_equal(store.restore(state_at(0), "best").state, state_at(1))
        store.record_best(4, "metric", 1.0)
        store.save(state_at(5))
    assert opened(tmp_path, None).steps() == [4, 5]


@pytest.mark.slow
def test_one_wrong_bit_in_any_file_gives_no_wrong_number(two):
    fallbacks = 0
    for file in sorted(path for path in (two / "2").rglob("*") if path.is_file()):
        content = file.read_bytes()
        for place in {len(content) // 3, len(content) - 1} if content else ():
            changed = bytearray(content)
            changed[place] ^= 0x04
            file.write_bytes(changed)
            restored = restore(two)
            if not is_equal(restored, state_at(2)):  # Orbax writes files that it does not read.
                assert is_equal(restored, state_at(1)), file
                fallbacks += 1
        file.write_bytes(content)
    assert fallbacks >= 3


def test_a_checkpoint_without_its_digest_is_not_restored(two):
    file = two / "2" / "record" / "metadata"
    for content in (b'{"sha256": "wrong"}', b"[1]", None):
        file.unlink() if content is None else file.write_bytes(content)
        assert is_equal(restore(two), state_at(1))


def test_a_requested_checkpoint_that_is_damaged_or_missing_is_an_error_and_is_kept(two):
    damage(two / "2")
    with pytest.raises(UserError, match=r"none of the checkpoints \[2\] .* is intact"):
        restore(two, 2)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .* are \[1, 2\]"):
        restore(two, 3)
    with pytest.raises(UserError, match="no best checkpoint"):
        restore(two, "best")
    assert (two / "2").is_dir()


def test_a_run_that_fell_back_saves_the_damaged_step_again(two, caplog):
    with opened(two) as store:
        store.record_best(2, "metric", 0.5)
    damage(two / "2")
    with opened(two) as store:
        assert is_equal(store.restore(state_at(0)).state, state_at(1))
        assert store.best() is None, "it was set aside"
        store.save(state_at(2))
    assert f"{two / '2'} is damaged" in caplog.text
    caplog.clear()
    assert is_equal(restore(two), state_at(2))
    assert "damaged" not in caplog.text
    assert len(list(two.glob("damaged_2_*"))) == 1


def test_if_no_checkpoint_is_intact_training_does_not_silently_start_again(two):
    with pytest.raises(UserError, match="intact and of this run"):
        restore(two, run="digest of another one")
    for step in "12":
        damage(two / step)
    with (
        pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] .* is intact .* remove"),
        opened(two) as store,
    ):
        store.restore(state_at(0))
    assert {"1", "2"} <= {path.name for path in two.iterdir()}


def test_incomplete_checkpoints_are_reported_and_do_not_hinder_a_run(two, caplog):
    (two / "2" / "commit_success.txt").unlink()
    assert is_equal(restore(two), state_at(1))
    assert "2 is damaged (it is incomplete)" in caplog.text
    (two / "1" / "commit_success.txt").unlink()
    with opened(two) as store:
        assert store.restore(state_at(0)) is None
        store.save(state_at(1))
        store.wait()
        assert store.steps() == [1]
        with pytest.raises(ValueError, match="step 1 is not after 1"):
            store.save(state_at(1))
    assert len(list(two.glob("damaged_*"))) == 2

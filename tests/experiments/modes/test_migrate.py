"""The folder of a run of version 0.1 is converted to the current format without loss."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_runs import start, train

from experiments import run
from experiments.checkpoints import Checkpoints
from experiments.errors import UserError
from experiments.files import sha256_of_arrays
from experiments.modes.migrate import _OldState


@pytest.fixture
def old(trained, tmp_path):
    """A folder in the format of version 0.1: settings, and checkpoints with separate rollbacks."""
    with trained.checkpoints() as store:
        template = train(trained.root)  # Finished: its last state.
        state = store.restore(jax.eval_shape(lambda: template)).state
    optimizer, rollbacks = state.opt_state
    saved = _OldState(state.step, state.variables, state.ema_variables, optimizer, rollbacks)
    folder = tmp_path / "old"
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        items = {
            "state": ocp.args.StandardSave(saved),
            "digests": ocp.args.JsonSave({"state": sha256_of_arrays(saved)}),
        }
        manager.save(4, args=ocp.args.Composite(**items))
    settings = dict(trained.settings)
    settings["evaluate.num_judged_samples"] = settings.pop("evaluate.num_monitored_samples")
    del settings["train.ema_ramp"]  # Came later.
    record = {"settings": settings, "command": "python -m experiments.main --config=old.py"}
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 0.5}\n')
    return folder, state


def test_a_converted_run_has_the_same_state_and_samples_and_keeps_the_old_files(old, trained):
    folder, state = old
    start("migrate", folder)
    created = run.open_run(folder)
    assert created.command == "python -m experiments.main --config=old.py"
    assert created.settings["evaluate.num_monitored_samples"] == 32
    assert created.settings["train.ema_ramp"] is False
    with created.checkpoints() as store:
        restored = store.restore(jax.eval_shape(lambda: state)).state
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    for root in (folder, trained.root):
        start("sample", root, None, {"sample.name": "same"}, num_samples=6)
    one, other = (np.load(r / "samples" / "same.npz")["arr_0"] for r in (folder, trained.root))
    np.testing.assert_array_equal(one, other)
    assert (folder / "checkpoints_of_0.1" / "4").is_dir()
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2
    with pytest.raises(UserError, match="already contains a run of the current version"):
        start("migrate", folder)


@pytest.mark.parametrize("place", [(run, "create"), (Checkpoints, "save")])
def test_an_interrupted_conversion_can_be_repeated(place, old, monkeypatch):
    folder, state = old

    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*place, cut)
        with pytest.raises(KeyboardInterrupt):
            start("migrate", folder)
    start("migrate", folder)
    with run.open_run(folder).checkpoints() as store:
        assert store.steps() == [int(state.step)]


def test_a_folder_without_a_run_is_not_converted(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        start("migrate", tmp_path)


def test_a_damaged_checkpoint_is_not_converted(old):
    from benchmarks.faults import damage

    folder, _ = old
    damage.flip(damage.largest_file(folder / "checkpoints" / "4"))
    with pytest.raises(UserError, match=r"4 (is damaged|cannot be read)"):
        start("migrate", folder)
    assert not run.exists(folder)

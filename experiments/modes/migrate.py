"""Mode migrate: converts the folder of a run of version 0.1."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import build, prior, run, settings
from experiments.build import Training
from experiments.command_line import Command
from experiments.errors import UserError, first_line
from experiments.files import read_json, sha256_of_arrays
from experiments.modes.creation import load_data
from fdrl_jax.training.state import TrainState


class _OldState(NamedTuple):
    """The train state of version 0.1, with counters of rollbacks outside the optimizer state."""

    step: Any
    variables: Any
    ema_variables: Any
    opt_state: Any
    rollbacks: Any


def run_mode(command: Command) -> None:
    """Freezes the run and converts its newest checkpoint. The old ones are moved and kept.

    The data must be available, because the new run also stores held-out images.

    Raises:
      UserError: if the folder contains no run of version 0.1, or its checkpoint is damaged.
    """
    root = command.folder
    with run.locked_folder(root):
        # A conversion that was interrupted before it saved its checkpoint is continued.
        created = run.open_run(root, "ratio") if run.exists(root) else None
        if created is not None:
            with created.checkpoints() as store:
                is_complete = bool(store.steps())
            if is_complete:
                raise UserError(f"--workdir={root} already contains a run of the current version")
        record = read_json(root / "config.json", settings=dict, command=str)
        wanted = settings.checked(settings.completed(record["settings"]))
        source = load_data(wanted, command.data_dir)
        is_fitted = wanted["prior.name"] == "data_dependent"
        fitted = prior.read(root / "prior.npz", None) if is_fitted else None
        training = build.ratio_training(build.experiment(wanted, source, fitted))
        old, new = root / "checkpoints_of_0.1", root / "checkpoints"
        if not old.exists():
            new.rename(old)
        state = _read_newest(old, training)
        if created is None:
            created = run.create(
                root, "ratio", wanted, source, fitted, record["command"], command.data_dir
            )
        with created.checkpoints() as store:
            store.save(state)
    print(f"converted: step {int(state.step):,}; the old checkpoints are in {old}")


def _read_newest(folder: Path, training: Training) -> TrainState:
    shapes = training.state_shapes()
    optimizer_state, rollbacks = shapes.opt_state
    template = _OldState(
        shapes.step, shapes.variables, shapes.ema_variables, optimizer_state, rollbacks
    )
    with ocp.CheckpointManager(folder.absolute()) as manager:
        newest = manager.latest_step()
        if newest is None:
            raise UserError(f"no checkpoint in {folder}")
        items = {"state": ocp.args.StandardRestore(template), "digests": ocp.args.JsonRestore()}
        try:
            found = manager.restore(newest, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises plain exceptions for damaged files.
            raise UserError(
                f"{folder / str(newest)} cannot be read: {first_line(error)}"
            ) from error
    old = jax.tree.map(np.asarray, found["state"])
    if sha256_of_arrays(old) != found["digests"]["state"]:
        raise UserError(f"{folder / str(newest)} is damaged; remove it to convert the previous one")
    opt_state = type(shapes.opt_state)(old.opt_state, old.rollbacks)
    return TrainState(old.step, old.variables, old.ema_variables, opt_state)

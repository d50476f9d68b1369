"""Checkpoints of a run, by Orbax."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import UserError
from fdrl_jax.state import TrainState

# Settings that may change when a run goes on: they do not alter what a step computes.
FREE_IN_TRAINING = (
    *("log.", "checkpoint.", "snapshot.", "evaluate.", "train.max_"),
    *("data.dir", "data.on_error", "data.num_workers", "data.num_threads", "data.prefetch_batches"),
)
# Sampling moreover reads no optimizer, and may flow otherwise than training did.
FREE_IN_SAMPLING = (*FREE_IN_TRAINING, "flow.", "train.", "optimizer.", "seed")


class Checkpoints:
    """The checkpoints of a run: one folder a step, the newest few kept.

    A checkpoint holds the train state (step, variables, average, optimizer), the settings and the
    state of the data. Random keys follow from the step and the seed.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return sorted(
            step
            for step in self._manager.all_steps()
            # A folder that a crash left without Orbax's mark counts as a step for Orbax.
            if (self._folder / str(step) / "state").is_dir()
        )

    def save(
        self,
        train_state: TrainState,
        settings: dict[str, Any],
        data: dict[str, Any] | None = None,
    ) -> None:
        """Saves a state (one replica) in the background; a crash leaves the ones before intact.

        Args:
          train_state: the state.
          settings: those of the run.
          data: where the data stand and what fixes their order, if the run reads any.
        """
        step = int(train_state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.map(np.asarray, train_state)),
                settings=ocp.args.JsonSave(settings),
                data=ocp.args.JsonSave(data or {}),
            ),
        )

    def restore(
        self,
        template: TrainState,
        settings: dict[str, Any],
        free: tuple[str, ...],
        step: int | None = None,
    ) -> TrainState | None:
        """Restores the newest readable checkpoint, or the one of a step.

        Args:
          template: shapes and dtypes of the state, as from `jax.eval_shape`.
          settings: the settings of the present run.
          free: prefixes of settings that may differ from the checkpoint's.
          step: a step, or `None` for the newest.

        Returns:
          The state as numpy arrays, or `None` if there is no checkpoint.

        Raises:
          UserError: if the settings do not fit the checkpoint's, the step does not exist, or no
            checkpoint can be read.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise UserError(
                    f"no checkpoint of step {step} in {self._folder}; there are {steps}"
                )
            steps = [step]
        for candidate in reversed(steps):
            try:
                saved = self._restore_settings(candidate)
            except Exception as error:  # Orbax raises bare exceptions for damaged files.
                self._warn(candidate, error)
                continue
            check_fit(saved, settings, free, self._folder / str(candidate))
            try:
                restored = self._manager.restore(
                    candidate, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
                )
            except Exception as error:
                self._warn(candidate, error)
                continue
            return jax.tree.map(np.asarray, restored["state"])
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self._folder} can be read")
        return None

    def check_data(self, step: int, data: dict[str, Any]) -> None:
        """Checks that a run that goes on from a checkpoint would see the images that are due.

        Raises:
          UserError: if images were added, removed or renamed since.
        """
        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        saved = dict(self._manager.restore(step, args=args)["data"])
        if saved and saved != data:
            raise UserError(
                f"the data are not those of the checkpoint {self._folder / str(step)}: images were "
                "added, removed or renamed. Bring them back, or train in another --workdir"
            )

    def wait(self) -> None:
        """Waits until saves in the background are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the manager."""
        self._manager.close()

    def _restore_settings(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(settings=ocp.args.JsonRestore())
        return dict(self._manager.restore(step, args=args)["settings"])

    def _warn(self, step: int, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logging.getLogger("fdrl").warning(
            "checkpoint %s is damaged (%s); trying the one before", self._folder / str(step), reason
        )


def check_fit(
    saved: dict[str, Any], settings: dict[str, Any], free: tuple[str, ...], where: Path
) -> None:
    """Checks that a checkpoint's settings go with the present ones.

    Raises:
      UserError: naming each setting that differs, with both values.
    """
    differing = [
        f"{key} is {json.dumps(settings.get(key))} but was {json.dumps(saved.get(key))}"
        for key in sorted(saved.keys() | settings.keys())
        if saved.get(key) != settings.get(key) and not key.startswith(free)
    ]
    if differing:
        raise UserError(
            f"the config does not fit the checkpoint {where}: {'; '.join(differing)}. "
            "Use the settings of the checkpoint, or another --workdir"
        )

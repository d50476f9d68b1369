"""Checkpoints of a run, by Orbax, with hashes of our own."""

import contextlib
import io
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import schema
from experiments.errors import UserError
from experiments.storage.integrity import digest_arrays, digest_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState

# Settings that may change when a run goes on: they do not alter what a step computes.
FREE_IN_TRAINING = (
    *("log.", "checkpoint.", "snapshot.", "evaluate.", "train.max_"),
    *("train.on_divergence", "train.rollback_", "sample.", "curve.", "condition."),
    *("data.dir", "data.on_error", "data.num_workers", "data.num_threads", "data.prefetch_batches"),
)
# Sampling moreover reads no optimizer, and may flow otherwise than training did.
FREE_IN_SAMPLING = (*FREE_IN_TRAINING, "flow.", "train.", "optimizer.", "attack.", "seed")

_MARK = "commit_success.txt"  # Written by Orbax when all else is on disk.
_JSON_ITEMS = ("settings", "data", "digests")


class _Record(NamedTuple):
    """What a checkpoint holds beside the state."""

    settings: dict[str, Any]
    data: dict[str, Any]
    digests: dict[str, str]


class Checkpoints:
    """The checkpoints of a run: one folder a step, the newest few kept.

    A checkpoint holds the train state (step, variables, average, optimizer), the settings and the
    state of the data. Random keys follow from the step and the seed.

    Orbax returns wrong numbers for a file with flipped bits and zeros for a missing one, without an
    error. So SHA-256 digests of all that is saved are taken in memory and saved with it: they are
    complete exactly when the checkpoint is, wherever a crash falls, and cover the way from memory
    to memory. What does not match them is never returned.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return [step for step in sorted(self._manager.all_steps()) if self._is_complete(step)]

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

        Raises:
          UserError: if this save, or the one before it, cannot be written.
        """
        arrays = jax.tree.map(np.asarray, train_state)
        digests = {
            "state": digest_arrays(arrays),
            "settings": digest_json(settings),
            "data": digest_json(data or {}),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            settings=ocp.args.JsonSave(settings),
            data=ocp.args.JsonSave(data or {}),
            digests=ocp.args.JsonSave(digests),
        )
        self._attempt(lambda: self._manager.save(int(train_state.step), args=items))

    def restore(
        self,
        template: TrainState,
        settings: dict[str, Any],
        free: tuple[str, ...],
        step: int | None = None,
    ) -> TrainState | None:
        """Restores the newest intact checkpoint, or the one of a step.

        A damaged one is named in a warning, and the one before it is taken.

        Args:
          template: shapes and dtypes of the state, as from `jax.eval_shape`.
          settings: the settings of the present run.
          free: prefixes of settings that may differ from the checkpoint's.
          step: a step, or `None` for the newest.

        Returns:
          The state as numpy arrays, or `None` if there is no checkpoint.

        Raises:
          UserError: if the settings do not fit the checkpoint's, the step does not exist, or no
            checkpoint is intact.
        """
        steps = sorted(self._manager.all_steps())
        if step is not None:
            if step not in steps:
                raise UserError(
                    f"no checkpoint of step {step} in {self._folder}; there are {steps}"
                )
            steps = [step]
        for candidate in reversed(steps):
            try:
                record = self._read_record(candidate)
            except Exception as error:  # Orbax raises bare exceptions for damaged files.
                self._warn(candidate, error)
                continue
            check_fit(record.settings, settings, free, self._folder / str(candidate))
            try:
                return self._read_state(candidate, template, record)
            except Exception as error:
                self._warn(candidate, error)
        if steps:
            raise UserError(
                f"none of the checkpoints {steps} in {self._folder} is intact; remove that folder "
                "to train from the start"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames checkpoints newer than a step, which were found damaged, to `damaged_STEP`.

        A run that goes on from an older one comes to these steps again and saves them anew.
        """
        newer = [s for s in self._manager.all_steps() if s > step]
        if parallel.is_first_process():
            for damaged in newer:
                folder = self._folder / str(damaged)
                folder.rename(_free_name(self._folder / f"damaged_{damaged}"))
        parallel.barrier("damaged checkpoints set aside")
        self._manager.reload()

    def check_data(self, step: int, data: dict[str, Any]) -> None:
        """Checks that a run that goes on from a checkpoint would see the images that are due.

        Raises:
          UserError: if images were added, removed or renamed since.
        """
        saved = self._read_record(step).data
        if saved and saved != data:
            raise UserError(
                f"the data are not those of the checkpoint {self._folder / str(step)}: images were "
                "added, removed or renamed. Bring them back, or train in another --workdir"
            )

    def check_saved(self) -> None:
        """Looks whether a save in the background has failed, without waiting for it.

        Raises:
          UserError: if so.
        """
        self._attempt(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until saves in the background are on disk.

        Raises:
          UserError: if they cannot be written.
        """
        self._attempt(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for saves and frees the manager.

        Raises:
          UserError: if they cannot be written.
        """
        self._attempt(self._manager.close)

    def _attempt(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # Bare ones, of the file system's errors and of TensorStore's.
            good = self.steps()
            kept = f"that of step {good[-1]} is intact" if good else "there is none before it"
            raise UserError(
                f"a checkpoint cannot be written into {self._folder} ({_reason(error)}); {kept}"
            ) from error

    def _is_complete(self, step: int) -> bool:
        # A folder that a crash left without Orbax's mark counts as a step for Orbax.
        return (self._folder / str(step) / _MARK).is_file()

    def _read_record(self, step: int) -> _Record:
        if not self._is_complete(step):
            raise ValueError(f"{_MARK} is missing")
        items = {name: ocp.args.JsonRestore() for name in _JSON_ITEMS}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        record = _Record(*(dict(restored[name]) for name in _JSON_ITEMS))
        for name in ("settings", "data"):
            if digest_json(getattr(record, name)) != record.digests[name]:
                raise ValueError(f"the {name} are not what was saved")
        return record

    def _read_state(self, step: int, template: TrainState, record: _Record) -> TrainState:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        # When a read fails, TensorStore prints the stack of each other that is still under way.
        with contextlib.redirect_stderr(io.StringIO()):
            restored = jax.tree.map(np.asarray, self._manager.restore(step, args=args)["state"])
        if digest_arrays(restored) != record.digests["state"]:
            raise ValueError("the arrays are not what was saved")
        return restored

    def _warn(self, step: int, error: Exception) -> None:
        logging.getLogger("fdrl").warning(
            "checkpoint %s is damaged (%s); trying the one before",
            self._folder / str(step),
            _reason(error),
        )


def check_fit(
    saved: dict[str, Any], settings: dict[str, Any], free: tuple[str, ...], where: Path
) -> None:
    """Checks that a checkpoint's settings go with the present ones.

    Raises:
      UserError: naming each setting that differs, with both values.
    """
    differing = [
        told
        for key, told in schema.differences(
            schema.completed(saved), schema.completed(settings)
        ).items()
        if not key.startswith(free)
    ]
    if differing:
        raise UserError(
            f"the config does not fit the checkpoint {where}: {'; '.join(differing)}. "
            "Use the settings of the checkpoint, or another --workdir"
        )


def _reason(error: Exception) -> str:
    text = str(error).strip()
    code = re.search(r"os_error_code='(\d+)'", text)  # TensorStore's way to tell a system's error.
    if code:
        return os.strerror(int(code[1]))
    return text.splitlines()[0] if text else type(error).__name__


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, 1_000))]
    return next(name for name in names if not name.exists())

"""Checkpoints of a run, stored by Orbax and verified by a digest."""

import contextlib
import functools
import logging
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from experiments import devices
from experiments.errors import UserError, first_line
from experiments.files import read_sealed, sha256_of_arrays, sha256_of_json, write_sealed
from fdrl_jax.training.state import TrainState

Which: TypeAlias = int | Literal["best"] | None  # A step, the best by the metric, or the newest.
Window: TypeAlias = dict[str, list[float]]  # Metrics of the steps that no line of the log has yet.

_MARK = "commit_success.txt"  # Written by Orbax after everything else is on disk.
_STEP = re.compile(r"0|[1-9][0-9]*")  # The name of the folder of a checkpoint.


class Restored(NamedTuple):
    """A checkpoint in memory: the state of one replica, as NumPy arrays, and its digest."""

    state: TrainState
    sha256: str
    window: Window


def digest_of(run_id: str, state: TrainState) -> str:
    """Returns the digest of a checkpoint of a run with this state."""
    return sha256_of_json([run_id, sha256_of_arrays(state)])


class Checkpoints:
    """The checkpoints of a run, in one folder per step. The newest few and the best are kept.

    Orbax returns wrong numbers for a file with flipped bits, so a SHA-256 digest of the run and the
    state is saved with it. A state that does not match its digest is never returned.
    """

    def __init__(self, folder: Path, run_id: str, keep: int | None = None) -> None:
        """Opens the checkpoints of a run in a `with` statement, only for reading without `keep`."""
        self._folder, self._run_id, self._keep = folder.absolute(), run_id, keep
        self._best_file = self._folder / "best.json"

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        saves = self._keep is not None
        options = ocp.CheckpointManagerOptions(
            create=saves,
            read_only=not saves,
            cleanup_tmp_directories=saves,  # Remains of a crash.
            preservation_policy=AnyPreservationPolicy([LatestN(self._keep or 1), self]),
            lightweight_initialize=not saves,  # Reads none that training may remove.
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if "_manager" not in vars(self):
            return
        if kind is None:
            self.wait()
            self._manager.close()
        elif jax.process_count() == 1:  # Several processes would wait for each other.
            with contextlib.suppress(Exception):  # The error that led here is the one to report.
                self._manager.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Keeps the best checkpoint; the interface of a policy of Orbax."""
        best = self.best() or {"step": None}
        return [checkpoint.step == best["step"] for checkpoint in checkpoints]

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return [step for step in self._numbered() if (self._folder / str(step) / _MARK).exists()]

    def _numbered(self) -> list[int]:
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def best(self) -> dict[str, Any] | None:
        """Returns "step", "metric" and "value" of the best checkpoint, if there is one."""
        best = read_sealed(self._best_file) if self._best_file.exists() else None
        # If the checkpoint was set aside as damaged, the run has to find a best one again.
        return best if best and best["step"] in self.steps() else None

    def save(self, state: TrainState, window: Window | None = None) -> None:
        """Saves the state of one replica in the background. Earlier checkpoints survive a crash."""
        arrays, step = jax.tree.map(np.asarray, state), int(state.step)
        record = {"sha256": digest_of(self._run_id, arrays), "window": window or {}}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
        )
        # Orbax skips a step, without an error, that is not after all those that it lists.
        if not self._manager.save(step, args=items):
            raise ValueError(f"step {step} is not after {self._manager.latest_step()}")

    def record_best(self, step: int, metric: str, value: float) -> None:
        """Waits until the checkpoint of a step is complete, and records it as the best so far."""
        self.wait()
        if devices.is_first_process():
            write_sealed(self._best_file, {"step": step, "metric": metric, "value": value})
        devices.barrier("best checkpoint recorded")

    def wait(self) -> None:
        """Waits until saves in the background are on disk."""
        self._manager.wait_until_finished()

    def restore(self, template: TrainState, which: Which = None) -> Restored | None:
        """Restores the newest intact checkpoint, the best, or the one of a step; `None`: no one.

        Damaged ones are renamed to `damaged_STEP_...` unless only read, because a run that
        resumes from an older one saves their steps again.
        """
        steps = self.steps()
        if which == "best":
            which = best["step"] if (best := self.best()) else -1
        if which is not None and which not in steps:
            named = "best checkpoint" if which == -1 else f"checkpoint of step {which}"
            raise UserError(f"no {named} in {self._folder}; its steps are {steps}")
        damaged: list[int] = []
        for step in reversed(self._numbered() if which is None else [which]):
            found = self._read(step, template) if step in steps else "it is incomplete"
            if isinstance(found, Restored):
                if which is None:
                    self._set_aside(damaged)
                return found
            path = self._folder / str(step)
            logging.getLogger("fdrl").warning("%s is damaged (%s)", path, found)
            damaged.append(step)
        if steps:
            raise UserError(
                f"none of the checkpoints {damaged} in {self._folder} is intact and of this run; "
                "remove that folder to train from the start"
            )
        self._set_aside(damaged)
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        if not steps or self._keep is None:
            return
        for step in steps if devices.is_first_process() else ():
            unused = f"damaged_{step}_{uuid.uuid4().hex[:8]}"
            (self._folder / str(step)).rename(self._folder / unused)
        devices.barrier("damaged checkpoints set aside")
        self._manager.reload()

    def _read(self, step: int, template: TrainState) -> Restored | str:
        """Reads a checkpoint, or returns why its content is not what was saved."""
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=items)
            state, record = jax.tree.map(np.asarray, restored["state"]), restored["record"]
            if digest_of(self._run_id, state) == record["sha256"]:
                return Restored(state, record["sha256"], record["window"])
        except MemoryError:
            raise
        except Exception as error:  # Orbax raises plain exceptions for damaged files.
            return first_line(error)
        return "its content is not what this run saved"

"""Checkpoints of a run, stored by Orbax and verified by a digest."""

import contextlib
import functools
import io
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from errno import EISDIR, ENOENT, ENOTDIR
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from experiments.errors import UserError, first_line
from experiments.files import read_sealed, sha256_of_arrays, sha256_of_json, write_sealed
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

Which: TypeAlias = int | Literal["best"] | None  # A step, the best by the metric, or the newest.

_MARK = "commit_success.txt"  # Written by Orbax after everything else is on disk.
_STEP = re.compile(r"0|[1-9][0-9]*")  # The name of the folder of a checkpoint.
_REMOVAL_SECONDS = 0.5  # Longer than another program needs to remove a checkpoint, file by file.
_OF_MISSING_FILES = (ENOENT, ENOTDIR, EISDIR)  # Other errors of the system are not damage.


class Restored(NamedTuple):
    """A checkpoint in memory: the state of one replica, as NumPy arrays, and its digest."""

    state: TrainState
    sha256: str


def digest_of(run_id: str, state: TrainState) -> str:
    """Returns the digest of a checkpoint of a run with this state."""
    return sha256_of_json([run_id, sha256_of_arrays(state)])


class Checkpoints:
    """The checkpoints of a run, in one folder per step. The newest few and the best are kept.

    A checkpoint holds the train state. Random keys and the order of the data depend only on its
    step, its number of skipped batches, and the seed.

    Orbax does not report damage: it returns wrong numbers for a file with flipped bits, and zeros
    for a missing file. A SHA-256 digest of the run and the state is therefore computed in memory
    and saved in the same checkpoint. A state that does not match its digest is never returned.
    """

    def __init__(
        self, folder: Path, run_id: str, keep: int = 1, *, read_only: bool = False
    ) -> None:
        """Opens the checkpoints of a run, of which the newest `keep` are kept.

        Use it in a `with` statement. The folder need not exist, and if `read_only`, nothing in it
        is changed.
        """
        self._folder, self._run_id = folder.absolute(), run_id
        self._keep, self._read_only = keep, read_only
        self._best_file = self._folder / "best.json"

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,  # Remains of a crash.
            preservation_policy=AnyPreservationPolicy([LatestN(self._keep), self]),
            lightweight_initialize=self._read_only,  # Reads none that training may remove.
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
        """Keeps the best checkpoint; the interface of a policy of Orbax.

        Orbax's own `BestN` needs the metric when the checkpoint is saved. A run that has to stop
        saves first and evaluates afterwards.
        """
        best = self.best() or {"step": None}
        return [checkpoint.step == best["step"] for checkpoint in checkpoints]

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first. Any thread may call this."""
        names = filter(_STEP.fullmatch, _names(self._folder))
        return sorted(int(name) for name in names if _MARK in _names(self._folder / name))

    def best(self) -> dict[str, Any] | None:
        """Returns "step", "metric" and "value" of the best checkpoint, if there is one."""
        if not self._best_file.exists():
            return None
        best = read_sealed(self._best_file)
        # If the checkpoint was set aside as damaged, the run has to find a best one again.
        return best if best["step"] in self.steps() else None

    def save(self, train_state: TrainState) -> None:
        """Saves the state of one replica in the background. Earlier checkpoints survive a crash."""
        arrays, step = jax.tree.map(np.asarray, train_state), int(train_state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({"sha256": digest_of(self._run_id, arrays)}),
        )
        with self._errors_of_the_disk():
            # Orbax skips a step, without an error, that is not after all those that it lists.
            if not self._manager.save(step, args=items):
                raise ValueError(f"step {step} is not after {self._manager.latest_step()}")

    def record_best(self, step: int, metric: str, value: float) -> None:
        """Waits until the checkpoint of a step is complete, and records it as the best so far."""
        self.wait()
        if parallel.is_first_process():
            write_sealed(self._best_file, {"step": step, "metric": metric, "value": value})
        parallel.barrier("best checkpoint recorded")

    def check_saved(self) -> None:
        """Raises an OSError if a save in the background has failed, without waiting for it."""
        with self._errors_of_the_disk():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until saves in the background are on disk; an OSError says why one failed."""
        with self._errors_of_the_disk():
            self._manager.wait_until_finished()

    def restore(self, template: TrainState, which: Which = None) -> Restored | None:
        """Restores a checkpoint: the newest intact one, the best, or the one of a step.

        Later, damaged ones are renamed to `damaged_STEP_...` unless `read_only`, because a run that
        resumes from an older one saves these steps again. The template has shapes and dtypes of the
        state, as from `jax.eval_shape`. Returns `None` if there is no checkpoint. If the disk
        cannot be read at present, an OSError says so and nothing is renamed.
        """
        if which == "best":
            if (best := self.best()) is None:
                raise UserError(
                    f"no best checkpoint in {self._folder}; train with evaluate.every_steps above 0"
                )
            which = int(best["step"])
        damaged: list[int] = []
        while steps := [step for step in self.steps() if step not in damaged]:
            self._check_agreed(steps)
            step = steps[-1] if which is None else which
            if step not in steps:
                raise UserError(
                    f"no intact checkpoint of step {step} in {self._folder}; others: {steps}"
                )
            found = self._read(step, template)
            self._check_agreed(found.sha256 if isinstance(found, Restored) else "damaged")
            if isinstance(found, Restored):
                if which is None:
                    self._set_aside_after(step)
                return found
            if self._read_only:
                time.sleep(_REMOVAL_SECONDS)
            if step in self.steps():  # Else another program, which trains, has removed it.
                path = self._folder / str(step)
                logging.getLogger("fdrl").warning("checkpoint %s is damaged (%s)", path, found)
                damaged.append(step)
        self._check_agreed(steps)
        if damaged:
            raise UserError(
                f"none of the checkpoints {sorted(damaged)} in {self._folder} is intact and of "
                "this run; remove that folder to train from the start"
            )
        self._set_aside_after(-1)
        return None

    def _set_aside_after(self, step: int) -> None:
        """Renames the folders of later steps, which are damaged or incomplete."""
        if self._read_only:
            return
        manager = self._manager  # Creates the folder.
        if parallel.is_first_process():
            for path in self._folder.iterdir():
                if _STEP.fullmatch(path.name) and int(path.name) > step:
                    path.rename(path.with_name(f"damaged_{path.name}_{uuid.uuid4().hex[:8]}"))
        parallel.barrier("damaged checkpoints set aside")
        manager.reload()

    def _check_agreed(self, seen: Any) -> None:
        if not parallel.same_on_all_processes(str(seen)):
            raise UserError(
                f"the processes of the run see different checkpoints in {self._folder} (this one "
                f"sees {seen}): give them one shared --workdir"
            )

    def _read(self, step: int, template: TrainState) -> Restored | str:
        """Reads a checkpoint, or returns why its content is not what was saved.

        Raises an OSError if the disk cannot be read at present.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore()
        )
        try:
            # When a read fails, TensorStore prints the stacks of all other concurrent reads.
            with contextlib.redirect_stderr(io.StringIO()), self._errors_of_the_disk():
                restored = self._manager.restore(step, args=items)
            state = jax.tree.map(np.asarray, restored["state"])
            claimed: str = restored["record"]["sha256"]
        except MemoryError:
            raise
        except Exception as error:  # Orbax raises plain exceptions for damaged files.
            if isinstance(error, OSError) and error.errno not in (None, *_OF_MISSING_FILES):
                raise
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # An error of a collective: another process has failed.
            return first_line(error)
        if digest_of(self._run_id, state) != claimed:
            return "its content is not what this run saved"
        return Restored(state, claimed)

    @contextlib.contextmanager
    def _errors_of_the_disk(self) -> Iterator[None]:
        """Raises errors of the system as such; TensorStore reports them in the text of others."""
        try:
            yield
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if isinstance(error, OSError) or code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self._folder)) from error


def _names(folder: Path) -> list[str]:
    """Lists a folder that may be missing. Unlike `glob`, it raises other errors of the system."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []

"""Checkpoints of a run, stored by Orbax and verified by hashes."""

import contextlib
import errno
import io
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.errors import UserError, first_line
from experiments.files import read_json, sha256_of_arrays, sha256_of_json, write_json
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

Which: TypeAlias = int | Literal["best"] | None  # A step, the best by the metric, or the newest.

_MARK = "commit_success.txt"  # Written by Orbax after everything else is on disk.
_BEST = "best.json"
_UNFINISHED = ".orbax-checkpoint-tmp"  # In the names of folders that Orbax is still writing.
_STEP = re.compile(r"0|[1-9][0-9]*")  # The name of the folder of a checkpoint.
_REMOVAL_SECONDS = 0.5  # Longer than another program needs to remove a checkpoint, file by file.
_MAX_LISTINGS = 20
_PATIENCE_SECONDS = 30.0  # Limit for closing after an error, which could wait for ever.
_PATTERN = re.compile(r"[\[\]*?\\]")  # Orbax reads a path with one of these as a pattern.
# Errors of the disk or the machine, which do not show that the file is damaged.
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES)


class Restored(NamedTuple):
    """A checkpoint in memory: the state of one replica, as NumPy arrays, and its SHA-256 digest."""

    state: TrainState
    sha256: str


class _DamagedError(Exception):
    """The files on disk are not those that were saved."""


class Checkpoints:
    """The checkpoints of a run, in one folder per step. The newest few and the best are kept.

    A checkpoint holds the train state (step, variables, average, optimizer) and a record with the
    run that it belongs to. Random keys and the order of the data depend only on the step, the
    number of skipped batches in the state, and the seed.

    Orbax does not report damage: it returns wrong numbers for a file with flipped bits, and zeros
    for a missing file. SHA-256 digests of the state and the record are therefore computed in memory
    and saved in the same checkpoint, so that a crash cannot separate them. Data that do not match
    their digest are never returned.
    """

    def __init__(
        self, folder: Path, run_id: str, keep: int = 1, *, read_only: bool = False
    ) -> None:
        """Opens the checkpoints of a run. Use it in a `with` statement, or close it.

        The folder is created if missing, and the newest `keep` checkpoints are kept. If
        `read_only`, nothing is saved, and the folder must exist.
        """
        self._folder = folder.absolute()
        check_path(self._folder)
        self._run_id = run_id
        self._num_newest, self._read_only = keep, read_only
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            preservation_policy=self,
            lightweight_initialize=read_only,  # Reads no checkpoint that training may remove.
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif jax.process_count() == 1:  # Several processes would wait for each other.
            closing = threading.Thread(target=self._close_quietly, daemon=True)
            closing.start()
            closing.join(_PATIENCE_SECONDS)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first. Any thread may call this."""
        for _ in range(_MAX_LISTINGS):
            names = [mark.parent.name for mark in self._folder.glob(f"*/{_MARK}")]
            complete = sorted(int(name) for name in names if _STEP.fullmatch(name))
            # A training that keeps one checkpoint may replace it right after the listing.
            if complete or not self._read_only:
                break
        return complete

    def best(self) -> dict[str, Any] | None:
        """Returns "step", "metric" and "value" of the best checkpoint, if there is one.

        Raises:
          UserError: if its record has been edited and is no longer valid.
        """
        return read_best(self._folder)

    def save(self, train_state: TrainState) -> None:
        """Saves the state of one replica in the background. Earlier checkpoints survive a crash.

        Raises:
          UserError: if this checkpoint, or the previous one, cannot be written.
        """
        if self._read_only:
            raise ValueError("the checkpoints were opened with read_only=True")
        arrays, step = jax.tree.map(np.asarray, train_state), int(train_state.step)
        record = {"run": self._run_id, "state_sha256": sha256_of_arrays(arrays)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            record=ocp.args.JsonSave({**record, "sha256": sha256_of_json(record)}),
        )
        with self._explained():
            # Orbax skips a step, without an error, that is not after all those that it lists.
            if not self._manager.save(step, args=items):
                raise ValueError(f"step {step} is not after {self._manager.latest_step()}")

    def record_best(self, step: int, metric: str, value: float) -> None:
        """Records that the checkpoint of a step is the best so far by a metric; raises as `wait`.

        Waits until it is complete; until then the previous best one counts.
        """
        self.wait()
        if parallel.is_first_process():
            write_json(self._folder / _BEST, {"step": step, "metric": metric, "value": value})
        parallel.barrier("best checkpoint recorded")

    def restore(self, template: TrainState, which: Which = None) -> Restored | None:
        """Restores a checkpoint: the newest intact one, the best, or the one of a step.

        If the newest checkpoint is damaged, a warning is logged and the previous one is restored.
        Checkpoints that another program removes in the meantime are skipped. The template has
        shapes and dtypes of the state, as from `jax.eval_shape`. Returns `None` if there is no
        checkpoint.

        Raises:
          UserError: if the requested checkpoint does not exist, belongs to another run or cannot be
            read, or if no checkpoint is intact.
        """
        if which == "best":
            best = self.best()
            if best is None:
                raise UserError(
                    f"no best checkpoint in {self._folder}; train with evaluate.every_steps above 0"
                )
            which = int(best["step"])
        damaged: list[int] = []
        while steps := [step for step in self._agreed_steps() if step not in damaged]:
            step = steps[-1] if which is None else which
            if step not in steps:
                raise UserError(
                    f"no checkpoint of step {step} in {self._folder}; available steps: {steps}"
                )
            try:
                return self._read_agreed(step, template)
            except FileNotFoundError:
                continue  # Another program that trains has removed it.
            except _DamagedError as error:
                folder = self._folder / str(step)
                if which is not None:
                    others = [other for other in steps if other != step] or "none"
                    raise UserError(
                        f"the checkpoint {folder} is damaged ({error}); other checkpoints: {others}"
                    ) from error
                message = "checkpoint %s is damaged (%s); trying the previous one"
                logging.getLogger("fdrl").warning(message, folder, error)
                damaged.append(step)
        if damaged:
            raise UserError(
                f"none of the checkpoints {sorted(damaged)} in {self._folder} is intact; remove "
                "that folder to train from the start"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames checkpoints newer than a step, which are damaged, to `damaged_STEP`.

        A run that resumes from an older checkpoint reaches and saves these steps again.
        """
        if parallel.is_first_process():
            for newer in self._manager.all_steps():
                folder = self._folder / str(newer)
                if newer > step and folder.exists():
                    folder.rename(_free_name(self._folder / f"damaged_{newer}"))
        parallel.barrier("damaged checkpoints set aside")
        self._manager.reload()

    def check_saved(self) -> None:
        """Raises a UserError if a save in the background has failed, without waiting for it."""
        with self._explained():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until saves in the background are on disk; a UserError says why one failed."""
        with self._explained():
            self._manager.wait_until_finished()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Decides for Orbax, before each save, which checkpoints are kept."""
        kept = self._kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def close(self) -> None:
        """Waits for saves, removes checkpoints that are no longer kept, and closes the manager.

        Raises as `wait`.
        """
        if not self._read_only:
            self.wait()
            self._remove_unneeded()
        with self._explained():
            self._manager.close()

    def _close_quietly(self) -> None:
        # The error that led here is the one to report, not one from closing.
        with contextlib.suppress(Exception):
            self._manager.close()

    def _remove_unneeded(self) -> None:
        """Removes remains of a crash, and a checkpoint that is no longer the best.

        Orbax itself removes older checkpoints only when it saves a new one.
        """
        complete = self.steps()
        if not parallel.is_first_process() or not complete:
            return
        kept = self._kept(complete)
        for path in self._folder.iterdir():
            is_old = path.name.isdecimal() and int(path.name) not in kept
            if is_old or _UNFINISHED in path.name:
                shutil.rmtree(path)

    def _agreed_steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, which must be the same on all processes."""
        steps = self.steps()
        if not parallel.same_on_all_processes(sha256_of_json(steps)):
            raise UserError(
                f"the processes of the run see different checkpoints in {self._folder} (this one "
                f"sees {steps}): give them one shared --workdir"
            )
        return steps

    def _read_agreed(self, step: int, template: TrainState) -> Restored:
        """Reads a complete checkpoint, with the same outcome on all processes of the run.

        Raises a FileNotFoundError if it has been removed meanwhile, a _DamagedError, or a UserError
        for a checkpoint of another run, a disk that fails, or processes that do not read the same.
        """
        found: Restored | Exception
        try:
            found = self._read_patiently(step, template)
            outcome = found.sha256
        except (FileNotFoundError, _DamagedError) as error:
            found, outcome = error, type(error).__name__
        if not parallel.same_on_all_processes(outcome):
            raise UserError(
                f"the processes of the run do not read the same from {self._folder / str(step)}: "
                "give them one shared --workdir"
            )
        if isinstance(found, Exception):
            raise found
        return found

    def _read_patiently(self, step: int, template: TrainState) -> Restored:
        """Reads a checkpoint, and once more if it seems damaged or is being removed."""
        try:
            return self._read(step, template)
        except _DamagedError:
            if not self._read_only:  # This process holds the lock, so nobody else removes it.
                raise
            time.sleep(_REMOVAL_SECONDS)
            if not self._is_complete(step):
                raise FileNotFoundError(step) from None
            return self._read(step, template)

    def _read(self, step: int, template: TrainState) -> Restored:
        """Reads a complete checkpoint; raises as `_read_agreed`."""
        try:
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore()
            )
            # When a read fails, TensorStore prints the stacks of all other concurrent reads.
            with contextlib.redirect_stderr(io.StringIO()):
                restored = self._manager.restore(step, args=items)
            record = dict(restored["record"])
            claimed = record.pop("sha256")
            if sha256_of_json(record) != claimed:
                raise _DamagedError("the record is not what was saved")
            state = jax.tree.map(np.asarray, restored["state"])
        except (_DamagedError, MemoryError):
            raise
        except Exception as error:  # Orbax raises plain exceptions for damaged files.
            if not self._is_complete(step):
                raise FileNotFoundError(step) from error
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # An error of a collective: another process has failed.
            if _errno(error) in _TRANSIENT:
                raise UserError(
                    f"{self._folder / str(step)} cannot be read: {_reason(error)}"
                ) from error
            raise _DamagedError(_reason(error)) from error
        if record["run"] != self._run_id:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} belongs to another run: it was trained "
                "with a different run.json"
            )
        if sha256_of_arrays(state) != record["state_sha256"]:
            raise _DamagedError("the arrays are not what was saved")
        return Restored(state, record["state_sha256"])

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Plain exceptions wrap errors of the disk and TensorStore.
            steps = self.steps()
            kept = f"that of step {steps[-1]} is intact" if steps else "there is no earlier one"
            raise UserError(
                f"a checkpoint cannot be written into {self._folder} ({_reason(error)}); {kept}"
            ) from error

    def _kept(self, steps: Sequence[int]) -> set[int]:
        """Returns which of the steps in ascending order are kept: the newest and the best."""
        best = self.best()
        return {*steps[-self._num_newest :], *([best["step"]] if best else [])}

    def _is_complete(self, step: int) -> bool:
        # Orbax also lists a folder that a crash left without its mark.
        return (self._folder / str(step) / _MARK).is_file()


def read_best(folder: Path) -> dict[str, Any] | None:
    """Returns what `Checkpoints.best` does, without opening the checkpoints.

    Processes open them together, because Orbax waits for all of them.
    """
    file = folder / _BEST
    if not file.exists():
        return None
    found = read_json(file, step=int, metric=str, value=(int, float))
    # If the checkpoint was set aside as damaged, the run has to find a best one again.
    return found if (folder / str(found["step"]) / _MARK).is_file() else None


def check_path(folder: Path) -> None:
    """Checks that Orbax could read checkpoints from a folder.

    Raises:
      UserError: if the path has characters that Orbax misreads; names them.
    """
    bad = sorted(set(_PATTERN.findall(str(folder.absolute()))))
    if bad:
        raise UserError(
            f"--workdir={folder}: checkpoints cannot be read back from a path with "
            f"{' '.join(bad)}; choose another folder"
        )


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore reports it in the text.
    return int(code[1]) if code else None


def _reason(error: Exception) -> str:
    code = _errno(error)
    return first_line(error) if code is None else os.strerror(code)


def _free_name(path: Path) -> Path:
    names = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, 1_000))]
    return next(name for name in names if not name.exists())

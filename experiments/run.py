"""A run on disk, frozen when it is created. Its folder has everything that determines its results.

    run.json        kind, settings, identity of the data, digests of the files below, versions
    prior.npz       the fitted prior, if it is data-dependent
    reference.npz   held-out images, for pictures and metrics without the data
    commands.jsonl  every command that trained here
    checkpoints/    metrics.jsonl    snapshots/    report.html
    samples/        evaluations/     curves/       export/      records, never overwritten

`create` writes the first three files once, `run.json` last. All other code only reads them. The
name of a record is `step_N-KEY8`: the step, and a digest of everything that determines it.
"""

import contextlib
import datetime
import functools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import devices, experiment, files, settings
from experiments.checkpoints import Checkpoints, Restored, Which, digest_of
from experiments.command import Command
from experiments.data import BUILT_IN, contains, load
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation import references
from experiments.evaluation.references import ImageReference
from experiments.experiment import Experiment
from experiments.files import sha256_of_file, sha256_of_json
from experiments.prior import FittedPrior
from experiments.settings import Settings
from fdrl_jax._checks import nearest
from fdrl_jax.training.state import TrainState

Kind = Literal["ratio", "classifier"]  # What is trained.
Key = dict[str, Any]
_MODES = {"ratio": "train", "classifier": "classifier"}  # What trains each kind.
_FORMAT = 3
_PRIOR, _REFERENCE = "prior.npz", "reference.npz"


class Run:
    """An existing run."""

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root = root
        self.kind: Kind = record["kind"]
        self.settings = settings.from_config(record["settings"])  # Those it was created with.
        self.data: dict[str, Any] = record["data"]  # As `describe_data` returned them.
        self.command: str = record["command"]
        self.environment: dict[str, Any] = record["environment"]
        self._sha256: dict[str, str] = record["sha256_of_files"]
        # Digest of everything that determines its training and its samples.
        parts = ("kind", "settings", "data", "sha256_of_files")
        self.id = sha256_of_json([record[part] for part in parts])
        self.metrics = root / "metrics.jsonl"
        self.snapshots = root / "snapshots"
        self.samples = root / "samples"
        self.evaluations = root / "evaluations"
        self.curves = root / "curves"
        self.exports = root / "export"
        self.report = root / "report.html"

    def prior(self) -> FittedPrior | None:
        """Returns the fitted prior, if the run has one; a UserError names a changed file."""
        file = self._stored(_PRIOR)
        return files.read_npz(file) if file else None

    def source(self) -> Source:
        """Returns the data that the run stores: everything except what only training needs."""
        if self._kept_images is None:  # Built-in data.
            return load(self.settings.data)
        return references.frozen_source(self._kept_images, self.data)

    @functools.cached_property
    def metric_reference(self) -> Source | ImageReference:
        """The real data that samples are compared with."""
        kept = self._kept_images
        return references.of(self.source()) if kept is None else kept

    @functools.cached_property
    def _kept_images(self) -> ImageReference | None:
        file = self._stored(_REFERENCE)
        return references.load(file) if file else None

    def _stored(self, name: str) -> Path | None:
        """Returns the path of a file, if the run was created with it; a UserError if it changed."""
        file, sha256 = self.root / name, self._sha256.get(name)
        if sha256 and not (file.is_file() and sha256_of_file(file) == sha256):
            raise UserError(f"{file} is not the file the run was created with; restore it")
        return file if sha256 else None

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """Opens the checkpoints for reading or, with the lock, for saving, which keeps some."""
        return Checkpoints(self.root / "checkpoints", self.id, keep)

    def restored(self, template: TrainState, which: Which = None) -> Restored:
        """Restores as `Checkpoints.restore` does, but raises a UserError if there is none."""
        with self.checkpoints() as store:
            found = store.restore(template, which)
        if found is None:
            verb = f"train first, with --mode={_MODES[self.kind]}"
            raise UserError(f"no checkpoint in {self.root}; {verb}")
        return found

    def digest(self, state: TrainState) -> str:
        """Returns the digest that a checkpoint of this state has."""
        return digest_of(self.id, state)

    def changed(self, wanted: Settings, verb: settings.Verb) -> Settings:
        """Returns the settings of a command, of which only some may differ from the run's."""
        if differing := settings.differences(self.settings, wanted, verb):
            fixed_at = f"these settings were fixed when the run {self.root} was created"
            hint = "To use others, train in another --workdir"
            raise UserError(f"{fixed_at}: {'; '.join(differing)}. {hint}")
        return wanted

    def warn_of_changes(self, precision: str) -> None:
        """Warns if the last digits may differ from those of an uninterrupted run."""
        then, now = self.environment, devices.environment(precision)
        changed = [f"{k} {now[k]} (was {then.get(k)})" for k in now if now[k] != then.get(k)]
        if changed and devices.is_first_process():
            logging.getLogger("fdrl").warning(
                "the last digits may differ from an uninterrupted run: %s", ", ".join(changed)
            )

    def check_data(self, source: Source) -> None:
        """Raises a UserError if the data are not those the run was created with."""
        if describe_data(source) != self.data:
            raise UserError(
                "images or labels were added, removed, renamed or replaced since the run "
                f"{self.root} was created; restore them, or train in another --workdir"
            )

    def check_present(self) -> None:
        """Raises a UserError if the folder was removed. Orbax would create it again."""
        if not (self.root / "run.json").is_file():
            raise UserError(f"--workdir={self.root} was removed or renamed during training")

    def log_command(self, command: str) -> None:
        """Appends a command to the log of the run."""
        record = {"command": _without_home(command), "started": _now()}
        files.append_line(self.root / "commands.jsonl", record)

    def read_snapshots(self, up_to_step: int) -> list[tuple[int, np.ndarray]]:
        """Reads the snapshots (samples during training) up to a step; skips damaged ones."""
        read: list[tuple[int, np.ndarray]] = []
        for path in sorted(self.snapshots.glob("*.npz")):
            try:
                array = files.read_npz(path, "arr_0")["arr_0"]
            except UserError as error:
                logging.getLogger("fdrl").warning("skipped a snapshot: %s", error)
                continue
            is_alike = not read or array.shape == read[0][1].shape
            read += [(int(path.stem), array)] if is_alike and int(path.stem) <= up_to_step else []
        return read

    def newest_evaluation(self, key: Key) -> dict[str, Any] | None:
        """Returns the newest record of an evaluation with this key, for any number of samples."""
        found = self.evaluations.glob("*/record.json")
        wanted = {name: value for name, value in key.items() if name != "num_samples"}
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            record = files.read_sealed(path)
            if wanted.items() <= record["key"].items():
                return record
        return None


def describe_data(source: Source) -> dict[str, Any]:
    """Returns the description that identifies the data of a run, as values for JSON."""
    return {
        "name": source.name,
        "kind": source.kind,
        "event_shape": list(source.event_shape),
        "classes": list(source.classes),
        "identity": source.identity,
    }


@contextlib.contextmanager
def locked_folder(root: Path, *, creates: bool = True) -> Iterator[None]:
    """Creates the folder of a run and locks it; removes a new one if the command is rejected.

    Only the first process does. Unless the command `creates` runs, one must exist there.
    """
    if set("[]*?\\") & set(str(root.absolute())):
        raise UserError(f"--workdir={root}: Orbax cannot read paths with one of []*?\\")
    if not exists(root) and (not creates or (root.exists() and not root.is_dir())):
        raise _missing(root)
    if not devices.is_first_process():
        yield
        return
    is_new, lock = not root.exists(), root / "lock"
    was_locked = lock.exists()
    root.mkdir(parents=True, exist_ok=True)
    with files.locked(lock, f"--workdir={root}"):
        try:
            yield
        except BaseException:
            if not was_locked and not exists(root):
                lock.unlink(missing_ok=True)
                if is_new and root.is_dir() and not any(root.iterdir()):
                    root.rmdir()
            raise


def create(
    root: Path,
    kind: Kind,
    wanted: Settings,
    source: Source,
    fitted: FittedPrior | None,
    command: str,
) -> Run:
    """Creates a run, on the first process, in a `locked_folder`. All processes must call this."""
    check_free(root, wanted)
    if devices.is_first_process():
        stored = {}
        if fitted is not None:
            stored[_PRIOR] = files.write_npz(root / _PRIOR, fitted)
        # Built-in data need no stored reference, and a classifier has no samples to compare.
        if kind == "ratio" and wanted.data.name not in BUILT_IN:
            stored[_REFERENCE] = references.save(references.of_images(source), root / _REFERENCE)
        values = settings.to_flat(wanted)
        record = {
            "format": _FORMAT,
            "kind": kind,
            "settings": values | {key: _without_home(values[key]) for key in settings.PATHS},
            "data": describe_data(source),
            "sha256_of_files": stored,
            "command": _without_home(command),
            "created": _now(),
            "environment": devices.environment(devices.resolved(wanted).precision),
        }
        files.write_sealed(root / "run.json", record)
    devices.barrier("run created")
    return open_run(root)


def check_free(root: Path, wanted: Settings) -> None:
    """Raises a UserError for a folder with checkpoints of another run, or in that of the data."""
    if (root / "checkpoints").exists():
        raise UserError(f"--workdir={root} contains checkpoints but no run.json; restore that file")
    if contains(wanted.data, root):
        raise UserError(f"--workdir={root} is in the folder of the data; choose one elsewhere")


def exists(root: Path) -> bool:
    """Whether a folder contains a run."""
    return (root / "run.json").is_file()


def open_run(root: Path, kind: Kind | None = None) -> Run:
    """Opens a run, without changing anything on disk."""
    if not exists(root):
        raise _missing(root)
    record = files.read_sealed(root / "run.json")
    if record.get("format") != _FORMAT:
        raise UserError(f"{root} was written by another version of fdrl_jax; train it again")
    run = Run(root, record)
    if kind is not None and run.kind != kind:
        raise UserError(f"--workdir={root} is a run of --mode={_MODES[run.kind]}")
    return run


def check_agreed(content: Any) -> None:
    """Raises a UserError unless all processes, which must call this, have the same content."""
    if not devices.same_on_all_processes(sha256_of_json(content)):
        what = "settings, data, versions, checkpoints or folders"
        raise UserError(f"the processes of the run have different {what}")


class Opened(NamedTuple):
    """A run with one of its states."""

    run: Run
    experiment: Experiment
    state: TrainState  # Of one replica, on the host.
    sha256: str  # Digest of its checkpoint.

    @property
    def step(self) -> int:
        """The training step of the state."""
        return int(self.state.step)


def open_checkpoint(command: Command) -> Opened:
    """Opens the run and the checkpoint of a command that draws samples. Only its folder is read."""
    run = open_run(command.folder, "ratio")
    wanted = run.changed(settings.replace(run.settings, command.changes), "sample")
    used = devices.resolved(wanted)
    devices.multiply_in(used.precision)
    model = experiment.build(used, run.source(), run.prior())
    found = run.restored(model.state_shapes(), command.which)
    opened = Opened(run, model, found.state, found.sha256)
    check_agreed(key_of(opened, command.num_samples))
    return opened


def key_of(opened: Opened, num_samples: int | None, **more: Any) -> Key:
    """Returns everything that determines a record, such as the digest of a classifier."""
    return {
        "run": opened.run.id,
        "step": opened.step,
        "checkpoint_sha256": opened.sha256,
        "num_samples": num_samples,
        "settings": settings.of_scope(opened.experiment.settings, "flow"),
        **more,
    }


def name_of(opened: Opened, key: Key) -> str:
    """Returns the name of a record: the step, and a digest of its key."""
    return f"step_{opened.step}-{sha256_of_json(key)[:8]}"


def _missing(root: Path) -> UserError:
    hint = nearest(root.name, (path.parent.name for path in root.parent.glob("*/run.json")))
    return UserError(f"--workdir={root} contains no run{hint}; train one with --config")


def _without_home(text: str) -> str:
    """Shortens the home folder to `~` in what a run stores, because runs are shared."""
    return re.sub(rf"(?<![\w./~-]){re.escape(str(Path.home()))}/", "~/", text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

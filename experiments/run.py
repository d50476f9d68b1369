"""A run on disk, frozen when it is created. Its folder has everything that determines its results.

    run.json        kind, settings, identity of the data, digests of the files below, versions
    prior.npz       the fitted prior, if it is data-dependent
    reference.npz   held-out images, for pictures and metrics without the data
    commands.jsonl  every command that trained here
    checkpoints/    metrics.jsonl    snapshots/    pictures/    report.html
    samples/        evaluations/     curves/       export/      records, added and never overwritten

`create` writes the first three files once, `run.json` last. All other code only reads them.
"""

import contextlib
import datetime
import difflib
import functools
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fdrl_jax
from experiments import data, files, prior, settings
from experiments.checkpoints import Checkpoints, Restored, Which, check_path, read_best
from experiments.data import BUILT_IN, DataOptions, Source
from experiments.errors import UserError
from experiments.evaluation import references
from experiments.evaluation.references import ImageReference
from experiments.prior import FittedPrior
from experiments.settings import Settings
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

Kind = Literal["ratio", "classifier"]  # What is trained.
_MODES = {"ratio": "train", "classifier": "train_classifier"}  # What trains each kind.
_FORMAT = 2  # Format of the folder; version 0.1 wrote format 1, without a number.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Run:
    """An existing run."""

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root = root
        self.kind: Kind = record["kind"]
        # Those that it was created with, flat.
        self.settings = settings.checked(settings.completed(record["settings"]))
        self.data: dict[str, Any] = record["data"]  # As `describe_data` returned them.
        self.command: str = record["command"]
        self._data_dir = os.path.expanduser(record.get("data_dir", ""))
        self._prior_sha256: str | None = record["prior_sha256"]
        self._reference_sha256: str | None = record["reference_sha256"]
        # Digest of everything that determines its training and its samples, except the seed:
        # computed from the record on disk, so that keys of later versions do not change it.
        fixed = settings.of_scope(record["settings"], "fixed")
        self.id = files.sha256_of_json([self.kind, fixed, self.data, self._prior_sha256])
        self.metrics = root / "metrics.jsonl"
        self.snapshots = root / "snapshots"
        self.samples = root / "samples"
        self.evaluations = root / "evaluations"
        self.curves = root / "curves"
        self.pictures = root / "pictures"
        self.exports = root / "export"
        self.report = root / "report.html"

    def remembered_dir(self, dir: str) -> str:
        """Returns the `--data_dir` that the run was created with, the last place to look for data.

        It is "" if it no longer exists, or if `data.dir`, which is `dir`, or FDRL_DATA_DIR says
        where the data are.
        """
        is_needed = not data.resolve_dir(dir) and Path(self._data_dir).exists()
        return self._data_dir if is_needed else ""

    def prior(self) -> FittedPrior | None:
        """Returns the fitted prior, if the run has one.

        Raises:
          UserError: if the file is not the one the run was created with.
        """
        if self._prior_sha256 is None:
            return None
        return prior.read(self.root / "prior.npz", self._prior_sha256)

    def source(self) -> Source:
        """Returns the data that the run stores: everything except what only training needs.

        Raises:
          UserError: if the file of held-out images is not the one the run was created with.
        """
        if self._kept_images is None:  # Built-in data.
            return data.load(DataOptions(**settings.section(self.settings, "data")))
        return references.frozen_source(self._kept_images, self.data)

    @functools.cached_property
    def metric_reference(self) -> Source | ImageReference:
        """The real data that samples are compared with; raises as `source`."""
        kept = self._kept_images
        return references.of(self.source()) if kept is None else kept

    @functools.cached_property
    def _kept_images(self) -> ImageReference | None:
        if self._reference_sha256 is None:
            return None
        file = self.root / "reference.npz"
        if not file.is_file() or files.sha256_of_file(file) != self._reference_sha256:
            raise UserError(f"{file} is not the file the run was created with; restore it")
        return references.load(file)

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """Opens the checkpoints for saving, in a `with` statement. The caller must hold the lock.

        As many of the newest are kept as `keep` says, by default as set when the run was created.
        """
        keep = keep or self.settings["checkpoint.keep"]
        return Checkpoints(self.root / "checkpoints", self.id, keep)

    def saved_checkpoints(self) -> Checkpoints:
        """Opens the checkpoints, of which some exist, possibly while training saves more."""
        return Checkpoints(self.root / "checkpoints", self.id, read_only=True)

    def best_checkpoint(self) -> dict[str, Any] | None:
        """Returns "step", "metric" and "value" of the best checkpoint, if there is one.

        One process may call this without the others. Raises as `Checkpoints.best`.
        """
        return read_best(self.root / "checkpoints")

    def restored(self, template: TrainState, which: Which = None) -> Restored:
        """Restores as `Checkpoints.restore` does, but raises a UserError if there is none."""
        found = None
        if (self.root / "checkpoints").is_dir():
            with self.saved_checkpoints() as store:
                found = store.restore(template, which)
        if found is None:
            mode = _MODES[self.kind]
            raise UserError(f"no checkpoint in {self.root}; train first, with --mode={mode}")
        return found

    def overridden(self, changes: Mapping[str, Any]) -> Settings:
        """Returns the settings of a command that draws samples from the run.

        Raises:
          UserError: if a setting was fixed when the run was created; names each.
        """
        merged = settings.checked({**self.settings, **changes})
        fixed = settings.of_scope(merged, "fixed", "training")
        if differing := settings.differences(self.settings, {**self.settings, **fixed}):
            raise UserError(
                "these settings were fixed when the run "
                f"{self.root} was created: {'; '.join(differing.values())}. To use other values, "
                "train a new run in another --workdir"
            )
        return merged

    def resumed(self, wanted: Settings) -> Settings:
        """Returns the settings for resuming training.

        Free settings take effect; others must equal the run's.

        Raises:
          UserError: if other settings differ; names each with both values.
        """
        saved = {**self.settings, **settings.of_scope(wanted, "free")}
        if wanted["optimizer.schedule"] != "cosine":  # Its length affects every step.
            saved["train.num_steps"] = wanted["train.num_steps"]
        if differing := settings.differences(saved, wanted):
            reason = (
                " The cosine schedule of the learning rate spans train.num_steps, so that a longer "
                "training is a new run."
            )
            raise UserError(
                f"the config differs from the run {self.root}: {'; '.join(differing.values())}."
                f"{reason * ('train.num_steps' in differing)} Use the settings of the run, or "
                "another --workdir"
            )
        return wanted

    def check_data(self, source: Source) -> None:
        """Checks that the data are those the run was created with.

        Raises:
          UserError: if images were added, removed or renamed, or others are unreadable.
        """
        now, then = describe_data(source), self.data
        # Streamed images that may be skipped, which is a free setting, have no classes.
        compared = [key for key in then if key != "classes" or (now[key] and then[key])]
        differing = [key for key in compared if key != "fingerprint" and now.get(key) != then[key]]
        if differing:
            raise UserError(
                f"the data are not those the run {self.root} was created with: images were added, "
                f"removed or renamed, or others are unreadable ({', '.join(differing)}). Restore "
                "them, or train in another --workdir"
            )
        if now["fingerprint"] != then["fingerprint"]:
            # Only a warning, because modification times also change when a folder is copied.
            logging.getLogger("fdrl").warning(
                "the images of %s have other sizes or modification times than when the run was "
                "created; its prior and its reference do not change",
                source.name,
            )

    def check_present(self) -> None:
        """Checks that the folder still contains the run. Orbax would create it again.

        Raises:
          UserError: if it does not.
        """
        if not (self.root / "run.json").is_file():
            raise UserError(
                f"--workdir={self.root} was removed or renamed during training; earlier "
                "checkpoints are lost unless the folder still exists elsewhere"
            )

    def log_command(self, command: str) -> None:
        """Appends a command to the log of the run."""
        record = {"command": files.without_home(command), "started": _now()}
        files.append_line(self.root / "commands.jsonl", record)

    def read_snapshots(self, up_to_step: int) -> list[tuple[int, np.ndarray]]:
        """Reads the snapshots (samples during training) up to a step, in order.

        Raises:
          UserError: if a snapshot is damaged; names it.
        """
        numbered = (path for path in self.snapshots.glob("*.npz") if path.stem.isdecimal())
        read = []
        for step, path in sorted((int(path.stem), path) for path in numbered):
            if step > up_to_step:
                break
            samples = files.read_npz(path, "arr_0")["arr_0"]
            if samples.shape[1:] != tuple(self.data["event_shape"]) or not len(samples):
                raise UserError(f"{path} is damaged: its samples have the shape {samples.shape}")
            read.append((step, samples))
        return read


def describe_data(source: Source) -> dict[str, Any]:
    """Returns the description that identifies the data of a run, as values for JSON."""
    return {
        "name": source.name,
        "kind": source.kind,
        "event_shape": list(source.event_shape),
        "classes": list(source.classes),
        "identity": source.identity,
        "fingerprint": source.fingerprint,
    }


@contextlib.contextmanager
def locked_folder(root: Path, *, creates: bool = True) -> Iterator[None]:
    """Creates the folder of a run and locks it against other trainings.

    The first process holds the lock, and all processes learn whether it succeeded. If the command
    is rejected, a new folder is removed again. If the command creates no run, one must exist there.

    Raises:
      UserError: if the folder cannot be written, a required run is missing, or another process
        trains there.
    """
    check_path(root)
    if not creates and not exists(root):
        raise UserError(_why_missing(root))
    refused: UserError | None = None
    with contextlib.ExitStack() as stack:
        if parallel.is_first_process():
            try:
                stack.enter_context(_made_and_locked(root))
            except UserError as error:
                refused = error
        if not parallel.same_on_all_processes(str(refused is None)) or refused is not None:
            raise refused or UserError(
                f"the first process of the run cannot use --workdir={root}; see its message"
            )
        yield


@contextlib.contextmanager
def _made_and_locked(root: Path) -> Iterator[None]:
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={root} cannot be written: {error.strerror}") from error
    with files.locked(root / "lock", f"--workdir={root}", "train in another --workdir"):
        try:
            yield
        except BaseException:
            # If the folder was removed meanwhile, its absence is not the error to report.
            if is_new and root.is_dir() and [path.name for path in root.iterdir()] == ["lock"]:
                (root / "lock").unlink()
                root.rmdir()
            raise


def create(
    root: Path,
    kind: Kind,
    wanted: Settings,
    source: Source,
    fitted: FittedPrior | None,
    command: str,
    data_dir: str = "",
) -> Run:
    """Creates a run. The caller must hold `locked_folder`.

    The run remembers the `data_dir` of the command; see `Run.remembered_dir`.

    Raises:
      OSError: if the folder cannot be written.
    """
    if parallel.is_first_process():
        if fitted is not None:
            prior.write(root / "prior.npz", fitted)
        reference = root / "reference.npz"
        # Built-in data need no stored reference, and a classifier has no samples to compare.
        keeps_images = kind == "ratio" and wanted["data.name"] not in BUILT_IN
        if keeps_images:
            references.save(references.of_images(source), reference)
        record = {
            "format": _FORMAT,
            "kind": kind,
            "settings": wanted | {key: _portable(wanted[key]) for key in settings.PATHS},
            "data": describe_data(source),
            "prior_sha256": None if fitted is None else fitted.sha256,
            "reference_sha256": files.sha256_of_file(reference) if keeps_images else None,
            "command": files.without_home(command),
            "data_dir": data_dir and _portable(os.path.abspath(os.path.expanduser(data_dir))),
            "created": _now(),
            "versions": {
                "python": platform.python_version(),
                "fdrl_jax": fdrl_jax.__version__,
                **{name: version(name) for name in _PACKAGES},
            },
        }
        files.write_json(root / "run.json", record)
    parallel.barrier("run created")
    return open_run(root)


def exists(root: Path) -> bool:
    """Whether a folder contains a run. All processes must call this.

    Raises:
      UserError: if only some processes see a run there.
    """
    found = (root / "run.json").is_file()
    if not parallel.same_on_all_processes(str(found)):
        raise UserError(
            f"--workdir={root} is not the same folder on all processes: only some see a run. "
            "Give them one shared --workdir"
        )
    return found


def check_free(root: Path) -> None:
    """Checks that a folder contains nothing that would mix with a new run.

    Raises:
      UserError: if it contains a run of version 0.1, or checkpoints without a `run.json`.
    """
    if (root / "config.json").is_file():
        raise UserError(_why_missing(root))
    if (root / "checkpoints").exists():
        raise UserError(
            f"--workdir={root} contains checkpoints but no run.json; restore that file, or train "
            "in another --workdir"
        )


def read(root: Path) -> Run:
    """Reads what a run is, without starting JAX's backend, which would occupy the accelerator.

    Raises:
      UserError: if there is no run; suggests the closest folder with one.
    """
    path = root / "run.json"
    if not path.is_file():
        raise UserError(_why_missing(root))
    record = files.read_json(path, format=int, kind=str, settings=dict, data=dict, command=str)
    digest = (str, type(None))
    files.check_types(path, record, prior_sha256=digest, reference_sha256=digest)
    if record["format"] > _FORMAT:
        raise UserError(f"{root} was written by a newer version of fdrl_jax; update the program")
    types = {"name": str, "kind": str, "identity": str, "event_shape": list, "classes": list}
    files.check_types(path, record["data"], **types)
    try:
        return Run(root, record)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def open_run(root: Path, kind: Kind | None = None) -> Run:
    """Opens a run, without changing anything on disk. All processes must call this.

    Raises:
      UserError: as `read`, or if the run has another kind.
    """
    exists(root)  # Ends all processes if only some see the run.
    run = read(root)
    if not parallel.same_on_all_processes(run.id):
        raise UserError(f"--workdir={root} is not the same folder on all processes of the run")
    if kind is not None and run.kind != kind:
        words = {"ratio": "a density ratio", "classifier": "a classifier"}
        raise UserError(
            f"--workdir={root} contains {words[run.kind]}, not {words[kind]}; to resume its "
            f"training, use --mode={_MODES[run.kind]}"
        )
    return run


def _why_missing(root: Path) -> str:
    if (root / "config.json").is_file():
        return (
            f"--workdir={root} was written by version 0.1; convert it once (this needs its data): "
            f"python -m experiments.main --mode=migrate --workdir={root}"
        )
    if root.exists() and not root.is_dir():
        return f"--workdir={root} is a file, not the folder of a run"
    names = sorted(path.parent.name for path in root.parent.glob("*/run.json"))
    near = difflib.get_close_matches(root.name, names, n=1)
    hint = f"; did you mean '{root.with_name(near[0])}'?" if near else "."
    if names and not near:
        hint = f"; runs there: {', '.join(names[:5])}."
    return f"--workdir={root} contains no run{hint} Train one with --config=FILE.py"


def _portable(path: str) -> str:
    """Shortens the home folder. A path relative to the working folder would depend on it."""
    home = f"{Path.home()}/"
    return f"~/{path.removeprefix(home)}" if path.startswith(home) else path


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

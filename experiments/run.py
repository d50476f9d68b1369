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
import dataclasses
import datetime
import functools
import logging
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import fdrl_jax
from experiments import experiment, files, precision, prior, settings
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
from experiments.settings import Data, Flat, Settings
from fdrl_jax._names import nearest
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

Kind = Literal["ratio", "classifier"]  # What is trained.
Key = dict[str, Any]
_MODES = {"ratio": "train", "classifier": "classifier"}  # What trains each kind.
_FORMAT = 1


class Run:
    """An existing run."""

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root = root
        self.kind: Kind = record["kind"]
        self.settings = settings.from_config(record["settings"])  # Those it was created with.
        self.data: dict[str, Any] = record["data"]  # As `describe_data` returned them.
        self.command: str = record["command"]
        self._environment: dict[str, Any] = record["environment"]
        self._data_dir = os.path.expanduser(record["data_dir"])
        self._prior_sha256: str | None = record["prior_sha256"]
        self._reference_sha256: str | None = record["reference_sha256"]
        # Digest of everything that determines its training and its samples, except the seed.
        # Settings that did not exist when it was created have their default and no part in it.
        of_scope = settings.of_scope(self.settings, "fixed")
        fixed = {key: value for key, value in of_scope.items() if key in record["settings"]}
        self.id = sha256_of_json([self.kind, fixed, self.data, self._prior_sha256])
        self.metrics = root / "metrics.jsonl"
        self.snapshots = root / "snapshots"
        self.samples = root / "samples"
        self.evaluations = root / "evaluations"
        self.curves = root / "curves"
        self.pictures = root / "pictures"
        self.exports = root / "export"
        self.report = root / "report.html"

    def remembered_dir(self, dir: str) -> str:
        """Returns the first command's `--data_dir`, if it exists and `data.dir` is not set."""
        is_needed = not dir and Path(self._data_dir).exists()
        return self._data_dir if is_needed else ""

    def prior(self) -> FittedPrior | None:
        """Returns the fitted prior, if the run has one; a UserError names a changed file."""
        file, sha256 = self.root / "prior.npz", self._prior_sha256
        return None if sha256 is None else prior.read(file, sha256)

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
        if self._reference_sha256 is None:
            return None
        file = self.root / "reference.npz"
        if not file.is_file() or sha256_of_file(file) != self._reference_sha256:
            raise UserError(f"{file} is not the file the run was created with; restore it")
        return references.load(file)

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """Opens the checkpoints in a `with` statement, for reading or, with the lock, for saving.

        For saving, `keep` is the number of the newest that are kept.
        """
        folder = self.root / "checkpoints"
        return Checkpoints(folder, self.id, keep or 1, read_only=keep is None)

    def restored(self, template: TrainState, which: Which = None) -> Restored:
        """Restores as `Checkpoints.restore` does, but raises a UserError if there is none."""
        with self.checkpoints() as store:
            found = store.restore(template, which)
        if found is None:
            raise UserError(
                f"no checkpoint in {self.root}; train first, with --mode={_MODES[self.kind]}"
            )
        return found

    def digest(self, state: TrainState) -> str:
        """Returns the digest that a checkpoint of this state has."""
        return digest_of(self.id, state)

    def overridden(self, changes: Flat) -> Settings:
        """Returns the settings of a command that draws samples; those of training are fixed."""
        wanted = settings.replace(self.settings, changes)
        allowed = settings.of_scope(wanted, "flow", "free")
        self._check_fixed(wanted, settings.replace(self.settings, allowed))
        return wanted

    def resumed(self, wanted: Settings) -> Settings:
        """Returns the settings for resuming training, of which those that are free may change.

        Prints whether versions or devices changed. All processes must call this.
        """
        self._check_fixed(wanted, settings.as_resumed(self.settings, wanted))
        self.check_random_numbers()
        _check_agreed([settings.shareable(wanted), _software(wanted)])
        report_changes(self._environment, wanted)
        return wanted

    def _check_fixed(self, wanted: Settings, possible: Settings) -> None:
        if differing := settings.differences(possible, wanted):
            raise UserError(
                f"these settings were fixed when the run {self.root} was created: "
                f"{'; '.join(differing.values())}. To use others, train in another --workdir"
            )

    def check_random_numbers(self) -> None:
        """Raises a UserError if JAX would draw other random numbers than those of the run."""
        if changed := _changes(self._environment, _random_numbers()):
            raise UserError(
                f"the random numbers would not be those of the run {self.root}: {changed}. Set "
                "these options of JAX as they were"
            )

    def check_data(self, source: Source) -> None:
        """Raises a UserError if the data are not those the run was created with."""
        now = describe_data(source)
        differing = [key for key in now if now[key] != self.data[key]]
        if differing == ["fingerprint"]:
            # Only a warning, because modification times also change when a folder is copied.
            logging.getLogger("fdrl").warning(
                "the images of %s have other sizes or modification times than when the run was "
                "created",
                source.name,
            )
        elif differing:
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
        """Reads the snapshots (samples during training) up to a step, in order."""
        found = [(int(p.stem), p) for p in self.snapshots.glob("*.npz") if p.stem.isdecimal()]
        return [
            (step, files.read_npz(path, "arr_0")["arr_0"])
            for step, path in sorted(found)
            if step <= up_to_step
        ]

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
        "fingerprint": source.fingerprint,
    }


@contextlib.contextmanager
def locked_folder(root: Path, *, creates: bool = True) -> Iterator[None]:
    """Creates the folder of a run and locks it against other trainings.

    The first process holds the lock, and all processes learn whether it succeeded. If the command
    is rejected, a new folder is removed again. If the command creates no run, one must exist there.
    """
    path = str(root.absolute())
    if set("[]*?\\") & set(path) or path != path.encode(errors="ignore").decode():
        raise UserError(
            f"--workdir={root}: Orbax cannot read paths that are not UTF-8 or have one of []*?\\"
        )
    if not exists(root) and (not creates or (root.exists() and not root.is_dir())):
        raise _missing(root)
    refused: Exception | None = None
    with contextlib.ExitStack() as stack:
        if parallel.is_first_process():
            try:
                stack.enter_context(_made_and_locked(root))
            except (UserError, OSError) as error:
                refused = error
        if not parallel.same_on_all_processes(str(refused is None)) or refused is not None:
            raise refused or UserError(f"the first process cannot use --workdir={root}")
        yield


@contextlib.contextmanager
def _made_and_locked(root: Path) -> Iterator[None]:
    is_new, was_locked = not root.exists(), (root / "lock").exists()
    root.mkdir(parents=True, exist_ok=True)
    with files.locked(root / "lock", f"--workdir={root}", "train in another --workdir"):
        try:
            yield
        except BaseException:
            # A command that is refused leaves nothing. If the folder was removed meanwhile, its
            # absence is not the error to report.
            if not was_locked and not (root / "run.json").exists():
                (root / "lock").unlink(missing_ok=True)
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
    data_dir: str = "",
) -> Run:
    """Creates a run, which remembers the `data_dir` of the command; see `Run.remembered_dir`.

    The prior is that of the first process. The caller must hold `locked_folder`. All processes must
    call this.
    """
    described, prior_sha256 = describe_data(source), fitted.sha256 if fitted else None
    check_free(root, dataclasses.replace(wanted.data, dir=data_dir or wanted.data.dir))
    # Without the prior: the last digits of a fit depend on the processor and on its threads.
    _check_agreed([kind, settings.shareable(wanted), _software(wanted), described])
    if parallel.is_first_process():
        if fitted is not None:
            prior.write(root / "prior.npz", fitted)
        reference = root / "reference.npz"
        # Built-in data need no stored reference, and a classifier has no samples to compare.
        keeps_images = kind == "ratio" and wanted.data.name not in BUILT_IN
        if keeps_images:
            references.save(references.of_images(source), reference)
        values = settings.to_flat(wanted)
        paths = {key: _without_home(values[key]) for key in settings.PATHS}
        record = {
            "format": _FORMAT,
            "kind": kind,
            "settings": values | paths,
            "data": described,
            "prior_sha256": prior_sha256,
            "reference_sha256": sha256_of_file(reference) if keeps_images else None,
            "command": _without_home(command),
            "data_dir": data_dir and _without_home(os.path.abspath(os.path.expanduser(data_dir))),
            "created": _now(),
            "environment": environment(wanted),
        }
        files.write_sealed(root / "run.json", record)
    parallel.barrier("run created")
    return open_run(root)


def create_with_state(
    root: Path,
    wanted: Settings,
    source: Source,
    fitted: FittedPrior | None,
    state: TrainState,
    command: str,
    data_dir: str = "",
) -> Run:
    """Creates the run of a density ratio that was trained elsewhere, with its only checkpoint.

    The folder must not exist, and does not after an interruption.
    """
    if root.exists():
        raise UserError(f"--workdir={root} exists; choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with files.unfinished_folder(root.parent) as scratch:
        unfinished = scratch / root.name
        with locked_folder(unfinished):
            created = create(unfinished, "ratio", wanted, source, fitted, command, data_dir)
            with created.checkpoints(wanted.checkpoint.keep) as store:
                store.save(state)
        unfinished.rename(root)
    return open_run(root)


def check_free(root: Path, data: Data) -> None:
    """Raises a UserError for a folder with checkpoints of another run, or in that of the data.

    This may be called before the data are read.
    """
    if (root / "checkpoints").exists():
        raise UserError(f"--workdir={root} contains checkpoints but no run.json; restore that file")
    if contains(data, root):
        raise UserError(
            f"--workdir={root} is in the folder of the data, which would then contain the pictures "
            "of the run; choose a folder elsewhere"
        )


def exists(root: Path) -> bool:
    """Whether a folder contains a run. All processes must call this, and must see the same."""
    found = (root / "run.json").is_file()
    _check_agreed(found)
    return found


def open_run(root: Path, kind: Kind | None = None) -> Run:
    """Opens a run, without changing anything on disk. All processes must call this."""
    if not exists(root):
        raise _missing(root)
    record = files.read_sealed(root / "run.json")
    if record["format"] > _FORMAT:
        raise UserError(f"{root} was written by a newer version of fdrl_jax; update the program")
    run = Run(root, record)
    _check_agreed(run.id)
    if kind is not None and run.kind != kind:
        raise UserError(f"--workdir={root} is a run of --mode={_MODES[run.kind]}")
    return run


def check_same_data(source: Source) -> None:
    """Raises a UserError unless all processes of the run read the same data. All must call this."""
    _check_agreed(describe_data(source))


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
    """Opens the run and the checkpoint of a command that draws samples. Only its folder is read.

    What killed programs left unfinished there is removed.
    """
    run = open_run(command.folder, "ratio")
    files.remove_remains(run.root)
    run.check_random_numbers()
    used = precision.resolve(run.overridden(command.changes))
    model = experiment.build(used, run.source(), run.prior())
    return Opened(run, model, *run.restored(model.state_shapes(), command.which))


def key_of(opened: Opened, num_samples: int | None, **more: Any) -> Key:
    """Returns everything that determines a record, as values for JSON.

    `num_samples` is `None` if the record does not depend on it; `more` are its further inputs, such
    as a classifier's digest.
    """
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


def _random_numbers() -> dict[str, Any]:
    """Returns the options of JAX that change random numbers."""
    names = ("jax_threefry_partitionable", "jax_enable_x64", "jax_random_seed_offset")
    return {name: getattr(jax.config, name) for name in names}


def _software(wanted: Settings) -> dict[str, Any]:
    """Returns what decides the bits apart from settings and devices, as values for JSON."""
    options: Any = jax.config  # Its attributes are created at run time.
    return {
        **_random_numbers(),
        "jax_default_prng_impl": options.jax_default_prng_impl,
        "jax_default_matmul_precision": options.jax_default_matmul_precision,
        "python": platform.python_version(),
        "fdrl_jax": fdrl_jax.__version__,
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "precision": precision.resolve(wanted).precision,
        "XLA_FLAGS": precision.flags_in_use(),
    }


def environment(wanted: Settings) -> dict[str, Any]:
    """Returns what decides the bits of results apart from the settings, as values for JSON."""
    kind, features = jax.local_devices()[0].device_kind, sorted(precision.features())
    return {
        **_software(wanted),
        "devices": f"{jax.device_count()} x {kind}",
        "processor": f"{platform.machine()} {sha256_of_json(features)[:8]} x {os.cpu_count()}",
    }


def report_changes(then: Mapping[str, Any], wanted: Settings) -> None:
    """Warns that results will not be those of an uninterrupted program, if this is so.

    `then` is the `environment` in which the program began.
    """
    # Older runs on accelerators have stored flags for CPUs.
    then = {**then, "XLA_FLAGS": precision.flags_in_use(then)}
    if (changed := _changes(then, environment(wanted))) and parallel.is_first_process():
        logging.getLogger("fdrl").warning(
            "the last digits of results may differ from those of an uninterrupted run: %s", changed
        )


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value} (was {then.get(key)})"
        for key, value in now.items()
        if value != then.get(key)
    )


def _check_agreed(content: Any) -> None:
    if not parallel.same_on_all_processes(sha256_of_json(content)):
        raise UserError(
            "the processes of the run have different settings, data, versions or folders: start "
            "each with the same command, on the same data, and with one shared --workdir"
        )


def _missing(root: Path) -> UserError:
    hint = nearest(root.name, (path.parent.name for path in root.parent.glob("*/run.json")))
    return UserError(f"--workdir={root} contains no run{hint}; train one with --config")


def _without_home(text: str) -> str:
    """Shortens the home folder to `~` in what a run stores, because runs are shared."""
    return re.sub(rf"(?<![\w./~-]){re.escape(str(Path.home()))}/", "~/", text)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

"""Creates or opens a run, for the modes that can start from a config."""

import time
from typing import NamedTuple

import jax

from experiments import build, data, prior, run, settings
from experiments.build import Experiment, Training
from experiments.command_line import Command
from experiments.data import DataOptions, Source
from experiments.errors import UserError
from experiments.machine import hardware, memory
from experiments.modes import example
from experiments.prior import FittedPrior
from experiments.run import Kind, Run
from experiments.settings import Settings
from fdrl_jax import parallel


class Created(NamedTuple):
    """A run of a density ratio, new or resumed, with its data."""

    run: Run
    experiment: Experiment


def create_or_resume(command: Command) -> Created:
    """Opens the run of a command for training, or creates it. The caller must hold its lock.

    Everything is checked before anything is written.

    Raises:
      UserError: for settings that are invalid or differ from the run's, or for other data.
    """
    opened, wanted, source = opened_or_new(command, "ratio")
    used = hardware.prepare(wanted)
    if opened is not None:
        experiment = build.experiment(used, source, opened.prior())
        check(experiment)
        return Created(opened, experiment)
    experiment, fitted = build.experiment(used, source), None
    check(experiment)
    if wanted["prior.name"] == "data_dependent":
        started = time.perf_counter()
        fitted = fit_prior(wanted, source)
        if parallel.is_first_process():
            print(f"{prior.describe(fitted)}, {time.perf_counter() - started:.1f} s")
        experiment = build.experiment(used, source, fitted)
    created = run.create(command.folder, "ratio", wanted, source, fitted, command.text)
    return Created(created, experiment)


def opened_or_new(command: Command, kind: Kind) -> tuple[Run | None, Settings, Source]:
    """Returns the run of a command if there is one, the settings to train with, and the data.

    Raises:
      UserError: for settings or data that do not fit the run, or a folder that cannot hold one.
    """
    if not run.exists(command.folder):
        run.check_free(command.folder)
        return None, *settings_and_data(command)
    opened = run.open_run(command.folder, kind)
    wanted = opened.resumed(wanted_settings(command, opened))
    source = load_data(wanted, command.data_dir)
    opened.check_data(source)
    return opened, wanted, source


def fit_prior(wanted: Settings, source: Source) -> FittedPrior:
    """Fits the data-dependent prior of these settings."""
    rank = prior.choose_rank(wanted["prior.rank"], source.event_shape)
    return prior.fit(source.train_batches(), rank, wanted["prior.jitter"])


def wanted_settings(command: Command, opened: Run | None = None) -> Settings:
    """Returns the settings of a command after checking them.

    Raises:
      UserError: for a missing config or invalid values.
    """
    if opened is not None and command.config_for is not None:
        # What was fitted to the device and the data stays as it was.
        of_data = _of_data(command.config or {})
        return settings.checked({**opened.settings, **of_data, **command.changes})
    if command.config is not None:
        return settings.checked(command.config)
    if opened is not None:
        return settings.checked({**opened.settings, **command.changes})
    raise UserError(f"--config=FILE.py is missing: {example(command.mode)}")


def settings_and_data(command: Command, *, blank: bool = False) -> tuple[Settings, Source]:
    """Returns the checked settings of a new run, and its data.

    A config that depends on the device and on the shape of the data is asked again once these are
    known; it keeps its settings of the data. Raises as `wanted_settings` and `load_data`.
    """
    wanted = wanted_settings(command)
    source = load_data(wanted, command.data_dir, blank=blank)
    if command.config_for is not None:
        fitting = command.config_for(jax.default_backend(), source.event_shape)
        wanted = settings.checked({**fitting, **_of_data(wanted), **command.changes})
        if parallel.is_first_process():
            print(f"config: for {source.event_shape} images on this {jax.default_backend()}")
    return wanted, source


def _of_data(wanted: Settings) -> Settings:
    return {key: value for key, value in wanted.items() if key.startswith("data.")}


def load_data(wanted: Settings, data_dir: str = "", *, blank: bool = False) -> Source:
    """Opens the data of a run; `blank` as for `data.load`.

    Raises:
      DataError: for data that are missing or cannot be read.
    """
    options = DataOptions(**settings.section(wanted, "data"))
    return data.load(options._replace(dir=data_dir or options.dir), blank=blank)


def check(experiment: Experiment) -> Training:
    """Checks that a density ratio can be trained here, before anything is written or fitted.

    Returns its training.

    Raises:
      UserError: for settings that do not fit together, or that need more memory than there is.
    """
    training = build.ratio_training(experiment)
    constants = build.shapes_on_device(training.constants, parallel.num_replicas())
    memory.check_state(training.state_shapes(), constants)
    return training

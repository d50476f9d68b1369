"""Creates or opens a run, for the modes that can start from a config."""

import time
from typing import NamedTuple

import jax

from experiments import build, data, prior, run, settings
from experiments.build import Experiment
from experiments.command_line import Command
from experiments.data import DataOptions, Source
from experiments.errors import UserError
from experiments.machine import hardware, memory
from experiments.modes import example
from experiments.run import Run
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
    if run.exists(command.folder):
        opened = run.open_run(command.folder, "ratio")
        wanted = opened.resumed(wanted_settings(command, opened))
        source = load_data(wanted, command.data_dir)
        opened.check_data(source)
        used = hardware.prepare(wanted)
        created = Created(opened, build.experiment(used, source, opened.prior()))
        check(created.experiment)
        return created
    run.check_free(command.folder)
    wanted, source = settings_and_data(command)
    used = hardware.prepare(wanted)
    experiment, fitted = build.experiment(used, source), None
    check(experiment)
    if build.needs_fitted_prior(wanted):
        started = time.perf_counter()
        rank = prior.choose_rank(wanted["prior.rank"], source.event_shape)
        fitted = prior.fit(source.train_batches(), rank, wanted["prior.jitter"])
        if parallel.is_first_process():
            print(f"{prior.describe(fitted)}, {time.perf_counter() - started:.1f} s")
        experiment = build.experiment(used, source, fitted)
    return Created(
        run.create(command.folder, "ratio", wanted, source, fitted, command.text), experiment
    )


def wanted_settings(command: Command, opened: Run | None = None) -> Settings:
    """Returns the settings of a command after checking them.

    Raises:
      UserError: for a missing config or invalid values.
    """
    if opened is not None and command.config_for is not None:
        # What was fitted to the device and the data stays as it was.
        of_data = {k: v for k, v in (command.config or {}).items() if k.startswith("data.")}
        return settings.checked({**opened.settings, **of_data, **command.changes})
    if command.config is not None:
        return settings.checked(command.config)
    if opened is not None:
        return settings.checked({**opened.settings, **command.changes})
    raise UserError(f"--config=FILE.py is missing: {example(command.mode)}")


def settings_and_data(command: Command) -> tuple[Settings, Source]:
    """Returns the checked settings of a new run, and its data.

    A config that depends on the device and on the shape of the data is asked again once these are
    known; it keeps its settings of the data.

    Raises:
      UserError: as `wanted_settings`.
      DataError: as `load_data`.
    """
    wanted = wanted_settings(command)
    source = load_data(wanted, command.data_dir)
    if command.config_for is not None:
        fitting = command.config_for(jax.default_backend(), source.event_shape)
        of_data = {key: value for key, value in wanted.items() if key.startswith("data.")}
        wanted = settings.checked({**fitting, **of_data, **command.changes})
        if parallel.is_first_process():
            print(f"config: for {source.event_shape} images on this {jax.default_backend()}")
    return wanted, source


def load_data(wanted: Settings, data_dir: str = "") -> Source:
    """Opens the data of a run.

    Raises:
      DataError: for data that are missing or cannot be read.
    """
    options = DataOptions(**settings.section(wanted, "data"))
    return data.load(options._replace(dir=data_dir or options.dir))


def check(experiment: Experiment) -> None:
    """Checks that a density ratio can be trained here, before anything is written or fitted.

    Raises:
      UserError: for settings that do not fit together, or that need more memory than there is.
    """
    training = build.ratio_training(experiment)
    memory.check_state(training.state_shapes(), training.constants)

"""Creates or opens a run, for the modes that can start from a config."""

import time

import jax

from experiments import build, data, prior, run, settings
from experiments.build import Experiment, Training
from experiments.command_line import Command
from experiments.data import DataOptions, Source, describe_shape
from experiments.errors import UserError
from experiments.evaluation.protocols import PROTOCOLS, check_weights
from experiments.machine import hardware, memory
from experiments.modes import example
from experiments.prior import FittedPrior
from experiments.run import Kind, Run
from experiments.settings import Settings
from fdrl_jax import parallel


def create_or_resume(command: Command) -> tuple[Run, Experiment]:
    """Opens the run of a density ratio for training, or creates it, and builds the ratio.

    The caller must hold its lock. Everything is checked before anything is written.

    Raises:
      UserError: for settings that are invalid or differ from the run's, for other data, or for a
        missing file of weights.
    """
    opened, wanted, source = opened_or_new(command, "ratio")
    if opened is None:
        _check_is_for_ratio(wanted)
    _check_files(wanted)
    used = hardware.prepare(wanted)
    fitted = None if opened is None else opened.prior()
    experiment = build.experiment(used, source, fitted)
    check(experiment)
    if opened is not None:
        return opened, experiment
    if wanted["prior.name"] == "data_dependent":
        started = time.perf_counter()
        fitted = fit_prior(wanted, source)
        if parallel.is_first_process():
            print(f"{prior.describe(fitted)}, {time.perf_counter() - started:.1f} s")
        experiment = build.experiment(used, source, fitted)
    created = run.create(
        command.folder, "ratio", wanted, source, fitted, command.text, command.data_dir
    )
    return created, experiment


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
    source = load_data(wanted, command.data_dir or opened.remembered_dir(wanted["data.dir"]))
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
    platform = jax.default_backend()
    if command.config_for is not None and parallel.is_first_process():
        print(f"config: recipe for {describe_shape(source.event_shape)} on a {platform.upper()}")
    return fitted_settings(command, wanted, platform, source.event_shape), source


def fitted_settings(
    command: Command, wanted: Settings, platform: str, event_shape: tuple[int, ...]
) -> Settings:
    """Asks a config that depends on the platform and on the shape of the data again.

    Returns the wanted settings of any other config.

    Raises:
      UserError: for invalid values.
    """
    if command.config_for is None:
        return wanted
    fitting = command.config_for(platform, event_shape)
    return settings.checked({**fitting, **_of_data(wanted), **command.changes})


def _of_data(wanted: Settings) -> Settings:
    return {key: value for key, value in wanted.items() if key.startswith("data.")}


def load_data(wanted: Settings, data_dir: str = "", *, blank: bool = False) -> Source:
    """Opens the data of a run; `blank` as for `data.load`.

    Raises:
      DataError: for data that are missing or cannot be read.
    """
    return data.load(data_options(wanted, data_dir), blank=blank)


def data_options(wanted: Settings, data_dir: str = "") -> DataOptions:
    """Returns where and how a run's data are read; a folder of the command comes first."""
    options = DataOptions(**settings.section(wanted, "data"))
    return options._replace(dir=data_dir or options.dir)


def _check_is_for_ratio(wanted: Settings) -> None:
    """Raises an error for settings that only a classifier reads."""
    changed = settings.changed(wanted)
    for key in changed:
        if key.startswith(("attack.", "augment.")):
            raise UserError(
                f"{key}={changed[key]} is for classifiers only, and this mode trains a density "
                "ratio: add --mode=train_classifier, or remove the setting"
            )


def _check_files(wanted: Settings) -> None:
    """Checks that files of weights exist, which are first read after hours of training.

    Raises:
      UserError: if one does not; names it.
    """
    for protocol in PROTOCOLS.values():
        if wanted[protocol.key]:
            check_weights(protocol, wanted[protocol.key])


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

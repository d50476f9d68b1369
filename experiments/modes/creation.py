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
from fdrl_jax.training import parallel


def create_or_resume(command: Command) -> tuple[Run, Experiment]:
    """Opens the run of a density ratio for training, or creates it, and builds the ratio.

    The caller must hold its lock. Everything is checked before anything is written.

    Raises:
      UserError: for settings that are invalid or differ from the run's, for other data, or for a
        missing file of weights.
    """
    opened, wanted, source = opened_or_new(command, "ratio")
    if opened is None:
        for key, value in settings.changed(wanted).items():
            if key.startswith(("attack.", "augment.")):
                raise UserError(
                    f"{key}={value} is for classifiers only, and this mode trains a density ratio: "
                    "add --mode=train_classifier, or remove the setting"
                )
    for protocol in PROTOCOLS.values():
        if wanted[protocol.key]:  # These files are first read after hours of training.
            check_weights(protocol, wanted[protocol.key])
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
    if command.config is None or command.config_for is not None:
        # What was fitted to the device and the data stays as it was.
        wanted = opened.resumed(adapted(command, opened.settings))
    else:
        wanted = opened.resumed(settings.checked(command.config))
    source = load_data(wanted, command.data_dir or opened.remembered_dir(wanted["data.dir"]))
    opened.check_data(source)
    return opened, wanted, source


def fit_prior(wanted: Settings, source: Source) -> FittedPrior:
    """Fits the data-dependent prior of these settings."""
    rank = prior.choose_rank(wanted["prior.rank"], source.event_shape)
    return prior.fit(source.train_batches(), rank, wanted["prior.jitter"])


def wanted_settings(command: Command) -> Settings:
    """Returns the settings of a new run after checking them.

    Raises:
      UserError: for a missing config or invalid values.
    """
    if command.config is None:
        raise UserError(f"--config=FILE.py is missing: {example(command.mode)}")
    return settings.checked(command.config)


def adapted(command: Command, others: Settings) -> Settings:
    """Returns other settings with the data and the changes of a command, after checking them."""
    return settings.checked({**others, **_of_data(command.config or {}), **command.changes})


def settings_and_data(command: Command, *, blank: bool = False) -> tuple[Settings, Source]:
    """Returns the checked settings of a new run, and its data.

    Raises as `wanted_settings`, `load_data` and `fitted`.
    """
    wanted = wanted_settings(command)
    source = load_data(wanted, command.data_dir, blank=blank)
    if command.config_for is None:
        return wanted, source
    platform, shape = jax.default_backend(), source.event_shape
    if parallel.is_first_process():
        print(f"config: recipe for {describe_shape(shape)} on a {platform.upper()}")
    return fitted(command, wanted, platform, shape), source


def fitted(command: Command, wanted: Settings, platform: str, shape: tuple[int, ...]) -> Settings:
    """Returns the settings for a device and data of a shape, if the config depends on them.

    The data are already open by then, so their settings stay as `wanted`.

    Raises:
      UserError: if the config then returns other settings of the data; names each.
    """
    if command.config_for is None:
        return wanted
    found = settings.checked({**command.config_for(platform, shape), **command.changes})
    if differing := settings.differences(_of_data(wanted), _of_data(found)):
        raise UserError(
            "config: get_config_for() must return the same data.* as get_config(), because the "
            f"data are read before it is called: {'; '.join(differing.values())}"
        )
    return found


def _of_data(values: Settings) -> Settings:
    return {key: value for key, value in values.items() if key.startswith("data.")}


def load_data(wanted: Settings, data_dir: str = "", *, blank: bool = False) -> Source:
    """Opens the data of a run; `blank` and errors as for `data.load`."""
    return data.load(data_options(wanted, data_dir), blank=blank)


def data_options(wanted: Settings, data_dir: str = "") -> DataOptions:
    """Returns where and how a run's data are read; a folder of the command comes first."""
    options = DataOptions(**settings.section(wanted, "data"))
    return options._replace(dir=data_dir or options.dir)


def check(experiment: Experiment) -> Training:
    """Returns the training of a density ratio, after checking that it can run here.

    Raises:
      UserError: for settings that do not fit together, or that need more memory than there is.
    """
    training = build.ratio_training(experiment)
    constants = build.shapes_on_device(training.constants, parallel.num_replicas())
    memory.check_state(training.state_shapes(), constants)
    return training

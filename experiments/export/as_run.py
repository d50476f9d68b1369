"""Makes a run of a trained sampler, which then samples, interpolates and can be evaluated."""

import dataclasses
import shlex

import jax
import jax.numpy as jnp
import numpy as np

import fdrl_jax
from experiments import experiment, run, settings
from experiments.command import Command
from experiments.data import BUILT_IN, load
from experiments.data.source import Source
from experiments.errors import UserError, first_line
from experiments.evaluation import references
from experiments.evaluation.references import ImageReference
from experiments.prior import FittedPrior
from experiments.settings import Settings
from fdrl_jax import Sampler


def make_run(command: Command) -> None:
    """Creates a run whose only checkpoint has the parameters of a sampler.

    Images are not part of a sampler. With `--data_dir`, the data that it was trained on, the run
    has held-out images and can be evaluated. It is not for more training: the state of the
    optimizer is that of a new run.
    """
    if not command.sampler:
        raise UserError(
            "--mode=import needs --sampler=NAME: one that ships with fdrl_jax, such as mnist, the "
            "folder of an export, or OWNER/NAME of the Hugging Face Hub"
        )
    if command.changes:
        names = ", ".join(command.changes)
        raise UserError(
            f"{names}: the run of a sampler has its settings; change them in later commands"
        )
    if jax.process_count() > 1:  # Each would make the run in an unfinished folder of its own.
        raise UserError("--mode=import is for one process; several can use the run that it makes")
    try:
        sampler = fdrl_jax.pretrained(command.sampler)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        raise UserError(f"--sampler: {first_line(error)}") from error
    config = sampler.config
    wanted = settings.from_config(config["settings"])
    source, fitted = _source(wanted, sampler, command.data_dir), _prior(wanted, sampler)
    state = experiment.build(wanted, source, fitted).init_state()
    state = state._replace(
        step=jnp.int32(config["step"]),
        variables=sampler.variables,
        ema_variables=sampler.variables,
    )
    created = run.create_with_state(
        command.folder, wanted, source, fitted, state, command.text, command.data_dir
    )
    print(f"run: {created.root}")
    print(
        f"try: python -m experiments.main --workdir={shlex.quote(str(created.root))} --mode=sample"
    )


def _source(wanted: Settings, sampler: Sampler, data_dir: str) -> Source:
    """Returns the data of the sampler, without images unless they are available."""
    described = sampler.config["data"]
    if wanted.data.name not in BUILT_IN and not data_dir:
        none = np.zeros((0, *sampler.event_shape), np.float32)
        return references.frozen_source(ImageReference(described["name"], none), described)
    source = load(dataclasses.replace(wanted.data, dir=data_dir))
    if run.describe_data(source)["identity"] != described["identity"]:
        raise UserError(
            f"--data_dir={data_dir}: the sampler was trained on other images, or on the same ones "
            "under other names, so held-out images may be among them"
        )
    return source


def _prior(wanted: Settings, sampler: Sampler) -> FittedPrior | None:
    if wanted.prior.name != "data_dependent":
        return None
    arrays = sampler.prior_params
    if "weights" in arrays:
        stored = {name: np.asarray(array) for name, array in arrays.items()}
        return FittedPrior(**stored, share_held=0.0, num_examples=0)
    mean, factor = np.asarray(arrays["mean"], np.float64), np.asarray(arrays["factor"])
    scale = {**sampler.config["prior"], **arrays}["remainder_scale"]
    return FittedPrior(mean, factor, scale, 0.0, 0)

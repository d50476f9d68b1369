"""Mode convert: a checkpoint of the authors' PyTorch program becomes a workdir."""

import contextlib
from pathlib import Path

import jax.numpy as jnp
import optax

from experiments import build, schema
from experiments.authors_checkpoint import AuthorsCheckpoint, read_checkpoint, read_prior
from experiments.build import Experiment, fitted_prior
from experiments.errors import UserError
from experiments.request import Request
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir, write_json
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def run(request: Request) -> None:
    """Writes a workdir that samples, evaluates and resumes, from the authors' file.

    Network, loss, divergence, flow and optimizer come from the file; the rest, such as where the
    data are, from the config.

    Raises:
      UserError: if the file cannot be read or does not fit, or the workdir has checkpoints.
    """
    file, workdir = Path(request.checkpoint or ""), Workdir(request.workdir)
    if workdir.checkpoints.is_dir() and any(workdir.checkpoints.iterdir()):
        raise UserError(f"--workdir={workdir.root} has checkpoints already; name an empty folder")
    checkpoint = read_checkpoint(file, schema.flatten(request.config))
    settings = dict(checkpoint.settings)
    if request.prior is not None:
        settings |= {"prior.name": "data_dependent", "prior.rank": 0}
    experiment = build.experiment(schema.unflatten(settings), fit_prior=False)
    moments = None
    if request.prior is not None:
        moments = read_prior(request.prior, experiment.source.event_shape)
    state = _train_state(checkpoint, experiment)
    workdir.create()
    with contextlib.closing(Checkpoints(workdir.checkpoints, experiment.num_checkpoints)) as store:
        store.save(state, experiment.settings)
    if parallel.is_first_process():
        if moments is not None:
            jitter = settings["prior.jitter"]
            fitted_prior.adopt(experiment.source, jitter, workdir.prior, *moments)
        record = {"command": request.command, "settings": experiment.settings}
        write_json(workdir.config, record)
    if checkpoint.left_out:
        print(f"settings without a counterpart, left out: {', '.join(checkpoint.left_out)}")
    print(f"converted: --workdir={workdir.root} samples, evaluates and resumes")


def _train_state(checkpoint: AuthorsCheckpoint, experiment: Experiment) -> TrainState:
    state = experiment.init_state()
    count = jnp.asarray(checkpoint.num_updates, jnp.int32)
    moments = {"mu": checkpoint.mu, "nu": checkpoint.nu, "count": count}
    return state._replace(
        step=jnp.asarray(checkpoint.num_steps, jnp.int32),
        variables=checkpoint.variables,
        ema_variables=checkpoint.ema_variables,
        opt_state=optax.tree.set(state.opt_state, **moments),
    )

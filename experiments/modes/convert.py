"""Mode convert: converts a checkpoint of the authors' PyTorch program to a run."""

from pathlib import Path

import jax.numpy as jnp
import optax

from experiments import build, prior, run, settings
from experiments.authors_checkpoint import read_checkpoint, read_prior
from experiments.command_line import Command
from experiments.errors import UserError
from experiments.modes import example
from experiments.modes.creation import fit_prior, load_data
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Creates a run from the authors' file, which can sample, evaluate and resume.

    Network, loss, divergence, flow and optimizer come from the file. Other settings, such as where
    the data are, come from the config.

    Raises:
      UserError: if the file cannot be read or does not fit, or the folder already contains a run.
    """
    file, prior_file = command.flags["checkpoint"], command.flags["prior"]
    if command.config is None or file is None:
        raise UserError(f"--config or --checkpoint=FILE.pt is missing: {example('convert')}")
    checkpoint = read_checkpoint(Path(file), command.config)
    adopted = {"prior.name": "data_dependent", "prior.rank": 0} if prior_file else {}
    wanted = settings.checked({**checkpoint.settings, **adopted})
    source = load_data(wanted, command.data_dir)
    experiment = build.experiment(wanted, source)
    fitted = None
    if prior_file:
        fitted = prior.from_covariance(*read_prior(Path(prior_file), source.event_shape))
    elif wanted["prior.name"] == "data_dependent":
        fitted = fit_prior(wanted, source)
    training = build.ratio_training(experiment)
    state = training.init_state()
    count = jnp.int32(checkpoint.num_updates)
    state = state._replace(
        step=jnp.int32(checkpoint.num_steps),
        variables=checkpoint.variables,
        ema_variables=checkpoint.ema_variables,
        opt_state=optax.tree.set(state.opt_state, mu=checkpoint.mu, nu=checkpoint.nu, count=count),
    )
    with run.locked_folder(command.folder):
        if run.exists(command.folder):
            raise UserError(
                f"--workdir={command.folder} already contains a run; choose another folder"
            )
        run.check_free(command.folder)
        created = run.create(
            command.folder, "ratio", wanted, source, fitted, command.text, command.data_dir
        )
        with created.checkpoints() as store:
            store.save(state)
    if not parallel.is_first_process():
        return
    if checkpoint.left_out:
        print(f"ignored settings without a counterpart: {', '.join(checkpoint.left_out)}")
    print(f"converted: --workdir={created.root} can now sample, evaluate and resume")

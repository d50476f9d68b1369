"""Mode prior: creates a run without training it, and shows samples of its prior and data."""

import jax
import numpy as np

from experiments import pictures, run
from experiments.command_line import Command
from experiments.modes.creation import create_or_resume
from experiments.sampling.draw import batch_at
from fdrl_jax.training import parallel, rng

_NUM_SHOWN = 100


def run_mode(command: Command) -> None:
    """Fits the prior of a new run and writes a picture of its samples."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        created, experiment = create_or_resume(command)
        if not parallel.is_first_process():
            return
        batch = jax.device_put(batch_at(experiment, np.arange(_NUM_SHOWN, dtype=np.int32)))
        keys = rng.example_keys(experiment.root_key, rng.Stream.PRIOR, batch["position"])
        x0 = experiment.problem.prior_sample(experiment.constants.prior, keys, batch)
        figure = pictures.prior_and_data(experiment.source, np.asarray(x0))
        print(f"picture: {pictures.save(figure, created.pictures / 'prior.png')}")

"""Mode prior: fits the data-dependent prior, or finds it fitted, and draws it beside the data."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, pictures
from experiments.request import Request
from experiments.sampling.draw import batch_at
from experiments.storage.workdir import Workdir
from fdrl_jax import parallel, rng

_NUM_SHOWN = 100


def run(request: Request) -> None:
    """Fits the prior into the workdir and writes a picture of its samples."""
    workdir = Workdir(request.workdir)
    experiment = build.experiment(request.config, workdir.prior)
    if not parallel.is_first_process():
        return
    workdir.create()
    positions = np.arange(_NUM_SHOWN, dtype=np.int32)
    batch = jax.tree.map(jnp.asarray, batch_at(experiment, positions))
    keys = rng.example_keys(experiment.key, rng.Stream.PRIOR, batch["position"])
    x0 = experiment.problem.prior_sample(experiment.constants.prior, keys, batch)
    figure = pictures.prior_and_data(experiment.source, np.asarray(x0))
    print(f"picture: {pictures.save(figure, workdir.pictures / 'prior.png')}")

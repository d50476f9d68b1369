"""What judge and denoiser share: networks that are trained once per data set and then read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks.peers.data import Images
from fdrl_jax.training import rng, state
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState, Variables
from fdrl_jax.training.steps import TrainStep


def load_or_fit(file: Path, fit: Callable[[], Variables]) -> Variables:
    """Reads variables from an npz, or computes them and writes them."""
    if not file.exists():
        variables = jax.tree.map(np.asarray, fit())
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **traverse_util.flatten_dict(variables, sep="/"))
    with np.load(file, allow_pickle=False) as arrays:
        variables = traverse_util.unflatten_dict(dict(arrays), sep="/")
    return dict(variables)


def run_steps(
    train_step: TrainStep,
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    images: Images,
    num_steps: int,
) -> TrainState:
    """Trains with seed 0 for a number of steps on images; `init` maps a key to variables."""
    key = rng.root_key(0)
    train_state = state.create(init(rng.stream_key(key, rng.Stream.INIT)), optimizer)
    constants = Constants(jax.tree.map(jnp.asarray, images), ())
    step = jax.jit(train_step, donate_argnums=1)
    for _ in range(num_steps):
        train_state, _metrics = step(key, train_state, constants)
    return train_state

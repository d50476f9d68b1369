"""What judge and denoiser share: networks that are trained once per data set and then applied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from tqdm import tqdm

from benchmarks.peers.data import Images
from experiments import files
from experiments.errors import UserError
from fdrl_jax.training import rng, state
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState, Variables
from fdrl_jax.training.steps import TrainStep

_BATCH = 250
_DIGEST = "images"  # The name of the digest in a file.


def load_or_fit(file: Path, images: Images, fit: Callable[[], Variables]) -> Variables:
    """Reads variables from an npz, or computes them and writes them with a digest of the images.

    Raises:
      UserError: if the file is from other images, such as those of another zip of the same name.
    """
    digest = files.sha256_of_arrays(images.pixels)
    if not file.exists():
        variables = jax.tree.map(np.asarray, fit())
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(file) as stream:  # Another race may read it.
            arrays = traverse_util.flatten_dict(variables, sep="/")
            np.savez(stream, **{_DIGEST: digest}, **arrays)
    found = files.read_npz(file)
    if str(found.pop(_DIGEST, "")) != digest:
        raise UserError(f"{file} is from other images; rename the zip, or use another --cache")
    return dict(traverse_util.unflatten_dict(found, sep="/"))


def run_steps(
    train_step: TrainStep,
    init: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    images: Images,
    num_steps: int,
    description: str,
) -> TrainState:
    """Trains with seed 0 for a number of steps on images, and shows a progress bar.

    `init` maps a key to variables.
    """
    key = rng.root_key(0)
    train_state = state.create(init(rng.stream_key(key, rng.Stream.INIT)), optimizer)
    constants = Constants(jax.tree.map(jnp.asarray, images), ())
    step = jax.jit(train_step, donate_argnums=1)
    for _ in tqdm(range(num_steps), unit="step", desc=description):
        train_state, _metrics = step(key, train_state, constants)
    return train_state


def in_batches(function: Callable[[Any], Any], images: np.ndarray) -> Any:
    """Applies a compiled function to batches of images, and joins its arrays, [N, ...]."""
    parts = [function(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

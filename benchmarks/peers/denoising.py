"""A denoiser for samples of all methods, trained separately on noisy images of the race."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import fitting
from benchmarks.peers.data import Images, draw, draw_noise
from benchmarks.peers.methods import DEQUANTISATION
from experiments.data.decode import to_uint8, to_unit
from fdrl_jax import networks
from fdrl_jax.training import rng, steps
from fdrl_jax.training.problem import Constants

Array = jax.Array

_NUM_STEPS, _BATCH, _LEARNING_RATE = 600, 32, 2e-3
NOISE = 2.0 * DEQUANTISATION  # As in the training of FDRL, `training.steps.make_train_step`.
_NETWORK = networks.Denoiser()


def load_or_train(file: Path, images: Images) -> Callable[[np.ndarray], np.ndarray]:
    """Reads the parameters of the denoiser from an npz, or trains it and writes them.

    Args:
      file: of the parameters.
      images: on which it trains.

    Returns:
      A function that removes noise from images, [N, H, W, C] uint8.
    """
    variables = fitting.load_or_fit(file, images, lambda: _train(images))
    apply = jax.jit(lambda batch: _NETWORK.denoise(variables, to_unit(batch)))
    return lambda pixels: to_uint8(fitting.in_batches(apply, pixels))


def _train(images: Images) -> Any:
    is_grey = images.pixels.shape[-1] == 1

    def loss_and_grads(
        variables: Any, key: Array, constants: Constants, _: Any, positions: Array
    ) -> tuple[Any, dict[str, Array]]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        real = draw(constants.data, data_key, positions, flip=not is_grey)["real"]
        added = draw_noise(key, rng.Stream.DEQUANTISATION, positions, real.shape[1:])
        noisy = jnp.clip(real + NOISE * added, -1.0, 1.0)  # As samples in uint8 are.

        def loss_fn(params: Any) -> Array:
            found = _NETWORK.denoise({"params": params}, noisy)
            return jnp.mean((found - real) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(variables["params"])
        return grads, {"loss": loss}

    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, _NUM_STEPS))
    step = steps.from_gradients(loss_and_grads, optimizer=optimizer, batch_size=_BATCH)

    def init(key: Array) -> Any:
        return _NETWORK.add_params({"params": {}}, key, images.pixels.shape[1:])

    return fitting.run_steps(step, init, optimizer, images, _NUM_STEPS, "denoiser").variables

"""A network that removes from samples the noise that training adds to data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks.layers import Conv, activate

__all__ = ["Denoiser"]
__dir__ = __all__.copy

_NAME = "denoiser"  # Its parameters stand next to the layers of an estimator.


class Denoiser(nn.Module):
    """A few 3x3 convolutions that predict what to add to a noisy image.

    Maps `x [B, H, W, C]` to the same shape. Trained by the squared error on images with Gaussian
    noise, it learns the mean of the images that a noisy one may come from. An estimator needs noise
    on its data, because otherwise it separates them from samples by details that the flow does not
    reach. There are `depth` hidden convolutions to `width` channels; the output is float32.

    Reference: Jolicoeur-Martineau et al., "Adversarial score matching and improved sampling for
    image generation", ICLR 2021 (the last denoising step of score-based models).
    """

    width: int = 32
    depth: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for index in range(self.depth):
            name = f"conv{index + 1}"
            y = activate(Conv(self.width, use_bias=True, dtype=self.dtype, name=name)(y))
        return x + Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name="last")(y)

    def add_params(
        self, variables: Mapping[str, Any], key: jax.Array, event_shape: tuple[int, ...]
    ) -> dict[str, Any]:
        """Returns the variables of an estimator of images [H, W, C] with those of this network."""
        own = jax.jit(self.init)(key, jnp.zeros((1, *event_shape)))["params"]
        return {**variables, "params": {**variables["params"], _NAME: own}}

    def denoise(self, variables: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """Applies the network with its parameters in such variables, for `Problem.denoise`."""
        clean: Any = self.apply({"params": variables["params"][_NAME]}, x)
        return jnp.asarray(clean)

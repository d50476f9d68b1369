"""The estimator for points of low dimension."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks.layers import Dense, activate


class MLP(nn.Module):
    """Multilayer perceptron with LeakyReLU(0.2) and one output a point.

    Maps `x [B, D]` to `[B]`: the density ratio or its logarithm, as the loss has it.

    Attributes:
      hidden_sizes: width of every hidden layer.
      spectral_norm: whether every kernel is divided by its largest singular value.
      dtype: type of the computation; parameters and output are float32.

    Reference: Heng et al., "Generative Modeling with Flow-Guided Density Ratio Learning", table 4.
    """

    hidden_sizes: Sequence[int] = (64, 64, 64, 64)
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, size in enumerate((*self.hidden_sizes, 1)):
            x = activate(x) if index else x
            # Even numbers: the reference implementation counts the activations between as well.
            x = Dense(size, self.spectral_norm, self.dtype, name=f"mlp_{2 * index}")(x)
        return x[..., 0].astype(jnp.float32)

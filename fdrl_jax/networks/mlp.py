"""The estimator for low-dimensional points."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks.layers import Dense, activate


class MLP(nn.Module):
    """Multilayer perceptron with LeakyReLU(0.2) and one output per point.

    Maps `x [B, D]` to `[B]`: the density ratio or its logarithm, depending on the loss.

    Attributes:
      hidden_sizes: width of every hidden layer.
      spectral_norm: whether every kernel is divided by its largest singular value.
      dtype: type of the computation; parameters, the last layer and the output are float32.

    Reference: Heng et al., "Generative Modeling with Flow-Guided Density Ratio Learning", table 4.
    """

    hidden_sizes: Sequence[int] = (64, 64, 64, 64)
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def head(self) -> str:
        """Name of the last layer, which computes in float32."""
        return self._name(len(self.hidden_sizes))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, size in enumerate(self.hidden_sizes):
            x = Dense(size, self.spectral_norm, self.dtype, name=self._name(index))(x)
            x = activate(x)
        # In bfloat16 the output, a log ratio, would be rounded to 8 bits.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = Dense(1, self.spectral_norm, dtype, name=self.head)(x)
        return x[..., 0].astype(jnp.float32)

    @staticmethod
    def _name(index: int) -> str:
        # Even numbers, because the reference implementation also counts the activations.
        return f"mlp_{2 * index}"

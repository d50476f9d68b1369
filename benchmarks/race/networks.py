"""The network of flow matching: a UNet with a time, from the library's convolutions."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks import Conv, Dense

Array = jax.Array


class UNet(nn.Module):
    """Maps `x [B, H, W, C]`, with multiples of 4, and times `t` [B] to velocities [B, H, W, C]."""

    width: int  # Channels at half of the resolution; twice as many at a quarter.
    num_blocks: int  # Blocks before and after each change of scale.
    dtype: DTypeLike = jnp.float32  # Convolutions are computed in it.

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        b, height, width, c = x.shape
        size, t = 4 * self.width, jnp.zeros(b) if t is None else t
        angles = t[:, None] * jnp.exp(jnp.linspace(0.0, math.log(100.0), 16))
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        embedding = nn.silu(Dense(size)(nn.silu(Dense(size)(features))))

        def blocks(y: Array, features: int, num: int) -> Array:
            for _ in range(num):
                y = _TimedBlock(features, self.dtype)(y, embedding)
            return y

        squares = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        y = squares.reshape(b, height // 2, width // 2, 4 * c)
        y = Conv(self.width, use_bias=True, dtype=self.dtype)(y)
        skip = blocks(y, self.width, self.num_blocks)
        y = Conv(2 * self.width, stride=2, use_bias=True, dtype=self.dtype)(skip)
        y = blocks(y, 2 * self.width, 2 * self.num_blocks)
        doubled = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
        y = jnp.concatenate([doubled, skip], axis=-1)
        y = nn.silu(_normalised(blocks(y, self.width, self.num_blocks)))
        y = Conv(4 * c, use_bias=True, dtype=self.dtype)(y).astype(jnp.float32)
        squares = y.reshape(b, height // 2, width // 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        return squares.reshape(x.shape)


class _TimedBlock(nn.Module):
    """Residual block that the time scales and shifts; it starts close to the identity."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        y = Conv(self.features, use_bias=True, dtype=self.dtype)(nn.silu(_normalised(x)))
        scale, shift = jnp.split(Dense(2 * self.features)(embedding)[:, None, None], 2, axis=-1)
        y = nn.silu(_normalised(y) * (1 + scale) + shift)
        gain = self.param("gain", nn.initializers.constant(0.1), (self.features,))
        y = Conv(self.features, use_bias=True, dtype=self.dtype)(y) * gain
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype)(x)
        return x + y.astype(x.dtype)


def _normalised(x: Array) -> Array:
    """Group normalisation in float32, with 8 groups and without parameters."""
    return nn.GroupNorm(8, use_bias=False, use_scale=False, dtype=jnp.float32)(x)

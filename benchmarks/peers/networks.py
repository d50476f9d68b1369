"""Networks of the rivals, from the library's convolutions: a UNet with times, and a generator."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks import Conv, Dense

Array = jax.Array


class _TimedBlock(nn.Module):
    """Residual block whose second convolution is scaled and shifted by an embedding of the times.

    It starts close to the identity, because the gain of its last convolution is small.
    """

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


class UNet(nn.Module):
    """Velocity of images at a time, on two scales: half and a quarter of the resolution.

    Maps `x [B, H, W, C]`, a time `t` [B] and a length of time `h` [B] to [B, H, W, C]. H and W are
    multiples of 4. With `num_classes`, it also reads labels [B], whose embedding is added to that
    of the times.

    Attributes:
      width: channels at half of the resolution; twice as many at a quarter.
      num_blocks: residual blocks before and after each change of scale.
      dtype: type of the convolutions; parameters and output are float32.
      num_classes: of the labels; `None` if it does not read them.
    """

    width: int
    num_blocks: int
    dtype: DTypeLike = jnp.float32
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array, h: Array, labels: Array | None = None) -> Array:
        size = 4 * self.width
        times = jnp.concatenate([_fourier_features(t), _fourier_features(h)], axis=-1)
        embedding = Dense(size)(nn.silu(Dense(size)(times)))
        if self.num_classes is not None:
            embedding = embedding + nn.Embed(self.num_classes, size)(labels)
        embedding = nn.silu(embedding)

        def blocks(y: Array, features: int, num: int) -> Array:
            for _ in range(num):
                y = _TimedBlock(features, self.dtype)(y, embedding)
            return y

        y = Conv(self.width, use_bias=True, dtype=self.dtype)(_space_to_depth(x))
        skip = blocks(y, self.width, self.num_blocks)
        y = Conv(2 * self.width, stride=2, use_bias=True, dtype=self.dtype)(skip)
        y = blocks(y, 2 * self.width, 2 * self.num_blocks)
        y = jnp.concatenate([_doubled(y), skip], axis=-1)
        y = nn.silu(_normalised(blocks(y, self.width, self.num_blocks)))
        y = Conv(4 * x.shape[-1], use_bias=True, dtype=self.dtype)(y)
        return _depth_to_space(y.astype(jnp.float32))


class Generator(nn.Module):
    """Images from latent vectors: `z [B, D] -> [B, H, W, C]`, through three resolutions.

    Residual blocks without normalisation layers, as in R3GAN (Huang et al., "The GAN is dead; long
    live the GAN!", NeurIPS 2024). H and W are multiples of 4.

    Attributes:
      shape: of an image, (H, W, C).
      width: channels at the full resolution; they double at each halving.
      dtype: type of the convolutions; parameters and output are float32.
    """

    shape: tuple[int, int, int]
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        first = (height // 4, width // 4, 4 * self.width)
        y = Dense(math.prod(first))(z).reshape(-1, *first).astype(self.dtype)
        for factor in (4, 2, 1):
            if factor < 4:
                y = _doubled(Conv(factor * self.width, 1, dtype=self.dtype)(y))
            gain = self.param(f"gain{factor}", nn.initializers.constant(0.1), (y.shape[-1],))
            inner = nn.leaky_relu(Conv(y.shape[-1], use_bias=True, dtype=self.dtype)(y), 0.2)
            inner = Conv(y.shape[-1], use_bias=True, dtype=self.dtype)(inner) * gain
            y = nn.leaky_relu(y + inner.astype(y.dtype), 0.2)
        return Conv(channels, use_bias=True, dtype=self.dtype)(y).astype(jnp.float32)


def _normalised(x: Array) -> Array:
    """Group normalisation in float32, with 8 groups and without parameters."""
    return nn.GroupNorm(8, use_bias=False, use_scale=False, dtype=jnp.float32)(x)


def _fourier_features(t: Array) -> Array:
    """Maps times in [0, 1], [B], to sines and cosines, [B, 32]."""
    angles = t[:, None] * jnp.exp(jnp.linspace(0.0, math.log(100.0), 16))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _space_to_depth(x: Array) -> Array:
    b, height, width, c = x.shape
    x = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, height // 2, width // 2, 4 * c)


def _depth_to_space(x: Array) -> Array:
    b, height, width, c = x.shape
    x = x.reshape(b, height, width, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * height, 2 * width, c // 4)


def _doubled(x: Array) -> Array:
    """Repeats each pixel along both axes."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

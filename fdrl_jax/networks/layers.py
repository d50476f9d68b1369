"""Layers with optional spectral normalisation, networks for points, and self-attention."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks._convolution import add_bias, convolve, matmul
from fdrl_jax.networks.spectral import normalised

__all__ = ["MLP", "Conv", "Dense", "SelfAttention", "Trunk", "activate"]
__dir__ = __all__.copy

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the reference implementation.
_init_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def activate(x: jax.Array) -> jax.Array:
    """LeakyReLU with slope 0.2 below zero."""
    return nn.leaky_relu(x, 0.2)


def _kernel(layer: "Dense | Conv", shape: tuple[int, ...]) -> jax.Array:
    kernel = layer.param("kernel", _init_kernel, shape, jnp.float32)
    kernel = normalised(layer, kernel) if layer.spectral_norm else kernel
    return kernel.astype(layer.dtype)


def _bias(layer: "Dense | Conv", fan_in: int) -> jax.Array:
    def init(key: jax.Array) -> jax.Array:
        bound = fan_in**-0.5
        return jax.random.uniform(key, (layer.features,), jnp.float32, -bound, bound)

    return layer.param("bias", init).astype(layer.dtype)


class Dense(nn.Module):
    """Affine map `x W + b` of the last axis to `features` numbers.

    The kernel is divided by its largest singular value with `spectral_norm`. Parameters are float32
    and the computation has the type `dtype`.
    """

    features: int
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, (x.shape[-1], self.features))
        return matmul(x.astype(self.dtype), kernel) + _bias(self, x.shape[-1])


class Conv(nn.Module):
    """Convolution of NHWC images under zero padding `kernel_size // 2`, an odd size.

    The other attributes are those of `Dense`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        y = convolve(x.astype(self.dtype), kernel, self.stride)
        return add_bias(y, _bias(self, self.kernel_size**2 * x.shape[-1])) if self.use_bias else y


class MLP(nn.Module):
    """Multilayer perceptron with LeakyReLU(0.2) and one output per point.

    Maps `x [B, D]` to `[B]`: the density ratio or its logarithm, depending on the loss.

    The last layer and the output are float32; other attributes are those of `Dense`.

    Reference: Heng et al., "Generative Modeling with Flow-Guided Density Ratio Learning", table 4.
    """

    hidden_sizes: Sequence[int] = (64, 64, 64, 64)
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def head(self) -> str:
        """Name of the last layer, which computes in float32."""
        return f"mlp_{2 * len(self.hidden_sizes)}"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index, size in enumerate(self.hidden_sizes):
            # Even numbers, because the reference implementation also counts the activations.
            x = activate(Dense(size, self.spectral_norm, self.dtype, name=f"mlp_{2 * index}")(x))
        # In bfloat16 the output, a log ratio, would be rounded to 8 bits.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = Dense(1, self.spectral_norm, dtype, name=self.head)(x)
        return x[..., 0].astype(jnp.float32)


class Trunk(nn.Module):
    """A perceptron with SiLU that maps `x [B, ...]` to `x` and all layers, [B, D + sum(sizes)].

    With `squares` the input has those of the columns as well, which show heavy tails.
    """

    hidden_sizes: tuple[int, ...] = (128, 128)
    squares: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), math.prod(x.shape[1:]))  # `reshape(len(x), -1)` fails for no rows.
        features = [jnp.concatenate([x, x**2 - 1.0], axis=-1) if self.squares else x]
        for size in self.hidden_sizes:
            features.append(nn.silu(nn.Dense(size)(features[-1])))
        return jnp.concatenate(features, axis=-1)


class SelfAttention(nn.Module):
    """Self-attention over the positions of images [B, H, W, C]: `y = x + gamma * W_o attended`.

    Keys, queries and values have `C / 8` channels. For positions `i, j`,
    `attended_j = sum_i softmax_i(key_i . query_j) value_i`. The learnt scalar `gamma` starts at 0.
    The convolutions are computed in `dtype`, the rest in at least float32.

    Reference: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019.
    """

    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def project(features: int, name: str, images: jax.Array) -> jax.Array:
            return Conv(features, 1, 1, True, self.spectral_norm, self.dtype, name=name)(images)

        def positions(name: str) -> jax.Array:
            images = project(max(channels // 8, 1), name, x)
            return images.reshape(images.shape[0], -1, images.shape[-1]).astype(dtype)

        # In bfloat16 the scores would be rounded before the softmax, an error of 1 to 3%.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bic,bjc->bij", positions("key"), positions("query"))
        weights = nn.softmax(scores, axis=1)
        attended = jnp.einsum("bij,bic->bjc", weights, positions("value"))
        output = project(channels, "self_att", attended.reshape(*x.shape[:-1], -1))
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        return x + gamma.astype(self.dtype) * output

"""Dense and convolution layers with optional spectral normalisation, and their activation."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks.convolution import add_bias, convolve
from fdrl_jax.networks.convolution_cpu import missing_contraction
from fdrl_jax.networks.spectral import normalised

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


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    missing = missing_contraction(kernel.shape[0], x.dtype)
    if missing:
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
        kernel = jnp.pad(kernel, ((0, missing), (0, 0)))
    return x @ kernel


class Dense(nn.Module):
    """Affine map `x W + b` of the last axis.

    Attributes:
      features: size of the output's last axis.
      spectral_norm: whether `W` is divided by its largest singular value.
      dtype: type of the computation; parameters are float32.
    """

    features: int
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, (x.shape[-1], self.features))
        return _product(x.astype(self.dtype), kernel) + _bias(self, x.shape[-1])


class Conv(nn.Module):
    """Convolution of NHWC images under zero padding `kernel_size // 2`.

    Attributes:
      features: number of output channels.
      kernel_size: odd side of the kernel.
      stride: distance between output positions.
      use_bias: whether a bias per channel is added.
      spectral_norm: whether the kernel is divided by its largest singular value.
      dtype: type of the computation; parameters are float32.
      implementation: as in `convolve`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32
    implementation: str = "custom"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = _kernel(self, shape)
        y = convolve(x.astype(self.dtype), kernel, self.stride, implementation=self.implementation)
        if not self.use_bias:
            return y
        bias = _bias(self, self.kernel_size**2 * x.shape[-1])
        return add_bias(y, bias, implementation=self.implementation)

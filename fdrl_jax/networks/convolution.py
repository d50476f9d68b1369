"""The two-dimensional convolution of the estimators, with derivatives that stay fast on CPU."""

import jax
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves images with an odd square kernel under zero padding ``kernel_size // 2``.

    Args:
        x: images ``[B, H, W, C_in]``.
        kernel: weights ``[k, k, C_in, C_out]`` with odd ``k``.
        stride: distance between output positions, at least 1.

    Returns:
        Images ``[B, ceil(H / stride), ceil(W / stride), C_out]``.

    Raises:
        ValueError: if the kernel is not square with an odd size.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must be square with an odd size, got {kernel.shape[:2]}")
    return _forward(x, kernel, stride)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )

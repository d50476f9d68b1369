"""Winograd's minimal filtering: 3x3 convolutions with two thirds of the multiplications.

This is for CPU, where XLA's direct convolution is already as fast as a matrix product, so only
fewer multiplications can make it faster. The algorithm F(2, 3) along the rows computes two rows of
outputs at a time, from four rows `d` of the input and the three rows `k` of the kernel:

    output = A^T [(G k) * (B^T d)]

Each of the four entries of the bracket is a 1x3 convolution along the columns, which needs 12
multiplications per channel for two outputs instead of 18. Rounding errors are as for the direct
sum.

More rows at a time, or both axes, would save more but lose precision. F(4, 3) is another 20%
faster, but its float32 errors of 1e-6 move activations across the kink of LeakyReLU, which changes
input gradients by 1e-3.

Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROWS = 2  # Rows of outputs at a time.

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B^T
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # G
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A^T


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images with a 3x3 kernel under zero padding 1 and stride 1.

    Args:
      x: images, [B, H, W, C_in].
      kernel: weights, [3, 3, C_in, C_out].

    Returns:
      Images, [B, H, W, C_out].
    """
    batch, height, width, _ = x.shape
    num_tiles = -(-height // _ROWS)
    padded = jnp.pad(x, ((0, 0), (1, 1 + num_tiles * _ROWS - height), (0, 0), (0, 0)))
    last = (num_tiles - 1) * _ROWS + 1
    rows = [lax.slice_in_dim(padded, i, i + last, _ROWS, axis=1) for i in range(len(_INPUT))]

    transformed = jnp.einsum("ai,ijco->ajco", jnp.asarray(_KERNEL, kernel.dtype), kernel)
    # Behind a barrier, the weights of each product are an array of their own, which XLA moves out
    # of a loop. It would repeat mere slices in each iteration.
    slices = [transformed[a : a + 1] for a in range(len(_INPUT))]
    weights = lax.optimization_barrier(slices)  # type: ignore[no-untyped-call]
    products = [
        lax.conv_general_dilated(
            _combine(combination, rows),
            weights[a],
            (1, 1),
            ((0, 0), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for a, combination in enumerate(_INPUT)
    ]
    tiles = jnp.stack([_combine(combination, products) for combination in _OUTPUT], axis=2)
    return tiles.reshape(batch, num_tiles * _ROWS, width, kernel.shape[3])[:, :height]


def _combine(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of arrays with weights of -1, 0 and 1."""
    terms: list[jax.Array] = [
        weight * array for weight, array in zip(weights.tolist(), arrays, strict=True) if weight
    ]
    return functools.reduce(jnp.add, terms)

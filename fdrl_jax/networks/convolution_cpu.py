"""Canonical forms of the convolution and its derivatives, for CPU.

What is fast on CPU depends on the type:

- float32 and float64: XLA's direct convolution is as fast as a matrix product, and Winograd's
  algorithm saves multiplications if there are many channels.
- bfloat16: with oneDNN (JAX 0.12, an XLA flag, and a processor with AMX or, from AMD,
  avx512_bf16) direct convolutions are faster still.

Kernel gradients are matrix products in both. As convolutions in bfloat16, oneDNN returns wrong
results for 2, 4 and 8 images. This module works around another bug of oneDNN: in bfloat16, matrix
products may read NaN past the end of a contraction whose length is not a multiple of 32, so
contractions are padded to a multiple.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax.networks import winograd

_MIN_CHANNELS_WINOGRAD = 16  # With fewer channels, the transforms cost more than they save.
_CONTRACTION_AMX = 32
_CACHE_BYTES = 2**21  # Of the second-level cache of a core, which has 1 or 2 MB on most servers.
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_Size = tuple[int, int]


def plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution itself, in XLA's canonical form."""
    padding = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=_LAYOUT
    )


def kernel_gradient_padding(
    x: jax.Array, g: jax.Array, stride: int, kernel_size: int
) -> list[_Size]:
    """Padding with which `x` meets `g`, taken as a kernel, at exactly the kernel's taps."""
    before = kernel_size // 2
    return [
        (before, (outputs - 1) * stride + kernel_size - before - length)
        for outputs, length in zip(g.shape[1:3], x.shape[1:3], strict=True)
    ]


def _suits_winograd(kernel_shape: tuple[int, ...], stride: int, dtype: jnp.dtype) -> bool:
    wide = min(kernel_shape[2:]) >= _MIN_CHANNELS_WINOGRAD
    # Its sums lose digits to cancellation, too many for bfloat16.
    return kernel_shape[:2] == (3, 3) and stride == 1 and wide and dtype != jnp.bfloat16


def output(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution, by Winograd's algorithm where it is faster."""
    if _suits_winograd(kernel.shape, stride, x.dtype):
        return winograd.convolve(x, kernel)
    return plain(x, kernel, stride)


def input_gradient(g: jax.Array, kernel: jax.Array, stride: int, size: _Size) -> jax.Array:
    """Convolves `g` once for every phase of the input's positions, then interleaves the phases.

    An input position `stride * i + phase` contributes to the output position `i + d` through the
    tap `t` with `stride * d = phase + k // 2 - t`. For one phase, the gradient is therefore a
    convolution of `g` with those taps for which `d` is an integer, in the order of `d`. At stride 1
    this is a single convolution with the reversed kernel.
    """
    if _suits_winograd(kernel.shape, stride, g.dtype):
        return winograd.convolve(g, kernel[::-1, ::-1].swapaxes(2, 3))
    counts = tuple(-(-length // stride) for length in size)
    rows = []
    for row in range(stride):
        row_taps, row_padding = _phase(kernel.shape[0], stride, row, counts[0], g.shape[1])
        columns = []
        for column in range(stride):
            taps, padding = _phase(kernel.shape[1], stride, column, counts[1], g.shape[2])
            part = kernel[row_taps, taps].swapaxes(2, 3)
            if part.size:
                # The barrier stops XLA from folding the reversal and the transposition into the
                # convolution, which would make it non-canonical. It also moves them out of a loop.
                part = lax.optimization_barrier(part)  # type: ignore[no-untyped-call]
                image = lax.conv_general_dilated(
                    g, part, (1, 1), (row_padding, padding), dimension_numbers=_LAYOUT
                )
            else:
                image = jnp.zeros((g.shape[0], *counts, kernel.shape[2]), g.dtype)
            columns.append(image)
        rows.append(jnp.stack(columns, axis=3))
    phases = jnp.stack(rows, axis=2)
    whole = phases.reshape(g.shape[0], counts[0] * stride, counts[1] * stride, kernel.shape[2])
    return whole[:, : size[0], : size[1]]


def _phase(
    kernel_size: int, stride: int, phase: int, count: int, length: int
) -> tuple[slice, _Size]:
    """Taps of one phase along one axis, last first, and the padding of `length` to `count`."""
    centre = phase + kernel_size // 2
    taps = range(centre % stride, kernel_size, stride)
    if not taps:
        return slice(0, 0), (0, 0)
    before = (taps[-1] - centre) // stride
    after = count - 1 + (centre - taps[0]) // stride - (length - 1)
    last_first = slice(taps[-1], taps[0] - 1 if taps[0] else None, -stride)
    return last_first, (before, after)


def kernel_gradient(x: jax.Array, g: jax.Array, stride: int, kernel_size: int) -> jax.Array:
    """The gradient with respect to the kernel: matrix products, summed over groups of images.

    The operands of a product contain each pixel several times, so they are made for few images at a
    time, which stay in the cache.
    """
    num: Any = x.shape[0]
    if not isinstance(num, int):  # The symbolic batch of an export.
        return _products(x, g, stride, kernel_size)
    pixels = math.prod(x.shape[1:]) // stride + math.prod(g.shape[1:])
    largest = _CACHE_BYTES // (kernel_size * pixels * x.dtype.itemsize)
    size = next((n for n in range(min(largest, num), 0, -1) if num % n == 0), 1)
    if size >= num:
        return _products(x, g, stride, kernel_size)

    def add_group(i: jax.Array, total: jax.Array) -> jax.Array:
        x_part, g_part = (lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, g))
        return total + _products(x_part, g_part, stride, kernel_size)

    shape = (kernel_size, kernel_size, x.shape[3], g.shape[3])
    zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(jax.typeof(x).manual_axis_type.varying)
    total: jax.Array = lax.fori_loop(0, num // size, add_group, lax.pcast(zero, axes, to="varying"))
    return total.astype(x.dtype)


def _products(x: jax.Array, g: jax.Array, stride: int, kernel_size: int) -> jax.Array:
    """One matrix product per phase of the rows of `x`, over all positions of all images.

    `x` is shifted along the columns and `g` along the rows, so that one product has all pairs of
    shifts. A row `stride * i + phase` of `x` meets the row `i - d` of `g` through the tap `t` with
    `stride * d = t - k // 2 - phase`.

    The products have the type of the images. XLA accumulates them in float32 in any case. With
    float32 results, it would convert bfloat16 operands first, and oneDNN would multiply in float32.
    """
    channels, features = x.shape[3], g.shape[3]
    (before, _), column_padding = kernel_gradient_padding(x, g, stride, kernel_size)
    zero = jnp.zeros((), x.dtype)
    padded = lax.pad(x, zero, ((0, 0, 0), (0, 0, 0), (*column_padding, 0), (0, 0, 0)))
    stop = (g.shape[2] - 1) * stride + 1
    taps = range(kernel_size)
    columns = jnp.concatenate(
        [lax.slice_in_dim(padded, tap, tap + stop, stride, 2) for tap in taps], axis=3
    )
    gradients: dict[int, jax.Array] = {}
    for phase in range(stride):
        left = columns[:, phase::stride]
        count = left.shape[1]
        shifts = {t: (t - before) // stride for t in taps if (t - before) % stride == phase}
        if not shifts:
            continue
        rows = [(d, count - g.shape[1] - d, 0) for d in shifts.values()]
        right = jnp.concatenate(
            [lax.pad(g, zero, ((0, 0, 0), row, (0, 0, 0), (0, 0, 0))) for row in rows], axis=3
        )
        product = lax.dot_general(
            _padded(left.reshape(-1, kernel_size * channels)),
            _padded(right.reshape(-1, len(shifts) * features)),
            (((0,), (0,)), ((), ())),
        )
        parts = product.reshape(kernel_size, channels, len(shifts), features)
        gradients |= {tap: parts[:, :, i] for i, tap in enumerate(shifts)}
    return jnp.stack([gradients[tap] for tap in taps])


def channel_sums(g: jax.Array) -> jax.Array:
    """Sums over all positions of all images, as a matrix product.

    XLA turns a large sum into windows that stride over the whole array once per channel, which
    takes up to six times as long.
    """
    rows = _padded(g.reshape(-1, g.shape[3]))
    ones = jnp.ones((1, rows.shape[0]), g.dtype)
    return lax.dot_general(ones, rows, (((1,), (0,)), ((), ())))[0]


def _padded(matrix: jax.Array) -> jax.Array:
    """Appends rows of zeros where a product over the rows could read past the end."""
    return jnp.pad(matrix, ((0, missing_contraction(matrix.shape[0], matrix.dtype)), (0, 0)))


def missing_contraction(length: int, dtype: jnp.dtype) -> int:
    """Returns by how much a matrix product over this length must be padded to be read in bounds."""
    return -length % _CONTRACTION_AMX if dtype == jnp.bfloat16 else 0

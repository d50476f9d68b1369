"""Canonical forms of the convolution and its derivatives, for CPU.

What runs fast on CPU depends on the type:

- float32 and float64: XLA's direct convolution runs at the rate of a matrix product, and Winograd's
  algorithm saves multiplications where channels are wide.
- bfloat16: with oneDNN (JAX 0.12, a flag of XLA, a processor with AMX) the direct convolution runs
  many times faster still. Some of its kernels are wrong, and the forms below avoid those. A kernel
  gradient with 2, 4 or 8 images is off by its own size; with 16 or more images, after padding with
  zeros, it is right. A float32 convolution with a 1x1 kernel and one output channel has a wrong
  kernel gradient; a 1x1 kernel's gradient is therefore a matrix product. AMX matrix products may
  read NaN past a contraction that is not a multiple of 32 long, so it is padded to one.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax.networks import winograd

_MIN_CHANNELS_WINOGRAD = 16  # With fewer, the transforms of the images cost more than they save.
_MIN_BATCH_ONEDNN = 16
_CONTRACTION_AMX = 32
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
    # Its sums cancel digits, of which bfloat16 has none to spare.
    return kernel_shape[:2] == (3, 3) and stride == 1 and wide and dtype != jnp.bfloat16


def output(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution: Winograd's algorithm where it saves work, else the direct one."""
    if _suits_winograd(kernel.shape, stride, x.dtype):
        return winograd.convolve(x, kernel)
    return plain(x, kernel, stride)


def input_gradient(g: jax.Array, kernel: jax.Array, stride: int, size: _Size) -> jax.Array:
    """Convolves `g` once for every phase of the input's positions, then interleaves the phases.

    An input position `stride * i + phase` met the kernel only at taps `t` with
    `stride * d = phase + k // 2 - t` for an integer `d`, when the output position was
    `i + d`: a convolution of `g` with those taps, in the order of `d`. At stride 1 this is
    the single convolution with the reversed kernel.
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
                # Unless a barrier keeps XLA from folding them into the convolution, the reversal
                # and the transposition make it non-canonical. It also moves them out of a loop.
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
    """Convolves the images with `g` as the kernel, their channels taken as the batch."""
    if kernel_size == 1:
        return _pointwise_kernel_gradient(x[:, ::stride, ::stride], g)
    if x.dtype == jnp.bfloat16:
        x, g = (_padded(a, max(0, _MIN_BATCH_ONEDNN - a.shape[0])) for a in (x, g))
    batch, channels, features = x.shape[0], x.shape[3], g.shape[3]
    # Transposing with the positions as one axis keeps XLA from folding the transposition into the
    # convolution, which would make it non-canonical, and lets it fuse with the copy.
    images = (
        x.reshape(batch, -1, channels).transpose(2, 1, 0).reshape(channels, *x.shape[1:3], batch)
    )
    kernel = (
        g.reshape(batch, -1, features).transpose(1, 0, 2).reshape(*g.shape[1:3], batch, features)
    )
    gradient = lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        kernel_gradient_padding(x, g, stride, kernel_size),
        rhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )
    return gradient.transpose(1, 2, 0, 3)


def _pointwise_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient to a 1x1 kernel: one matrix product over all positions."""
    left, right = x.reshape(-1, x.shape[3]), g.reshape(-1, g.shape[3])
    if x.dtype == jnp.bfloat16:
        left, right = (_padded(a, -a.shape[0] % _CONTRACTION_AMX) for a in (left, right))
    over_positions = (((0,), (0,)), ((), ()))
    gradient: jax.Array = lax.dot_general(
        left, right, over_positions, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
    )
    return gradient.astype(x.dtype)[None, None]


def _padded(array: jax.Array, count: int) -> jax.Array:
    """Appends zeros along the first axis."""
    return jnp.pad(array, ((0, count), *((0, 0),) * (array.ndim - 1)))

"""The two-dimensional convolution of the estimators, with derivatives that stay fast on CPU.

On CPU, XLA runs a convolution fast only in canonical form: NHWC images, an HWIO kernel, stride by
windows alone. The derivatives that JAX derives are not canonical, and inside a loop (a flow is one)
they run up to a hundred times slower. Here the three maps that a convolution and its derivatives
of every order consist of are written canonically for CPU, with Winograd's algorithm where it saves
work. GPU and TPU recognise the derived forms, so they keep those.

The maps are bilinear, and each one's derivatives are the other two:

    output(x, w)
    input_gradient(g, w) = d <g, output(x, w)> / dx
    kernel_gradient(x, g) = d <g, output(x, w)> / dw

Reverse mode works to any order; forward mode (`jax.jvp`) is not defined.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax.networks import winograd

_MIN_CHANNELS_WINOGRAD = 16  # With fewer, the transforms of the images cost more than they save.
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_Size = tuple[int, int]
_Pair = tuple[jax.Array, jax.Array]


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves images with an odd square kernel under zero padding `k // 2`.

    Args:
      x: images `[B, H, W, C_in]`.
      kernel: weights `[k, k, C_in, C_out]` with odd `k`, of the type of `x`.
      stride: distance between output positions, at least 1.

    Returns:
      Images `[B, ceil(H / stride), ceil(W / stride), C_out]`.

    Raises:
      ValueError: if the kernel is not square with an odd size, or the stride is below 1.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must be square with an odd size, got {kernel.shape[:2]}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    return _output(*_varying_alike(x, kernel), stride)


def _varying_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Lets arrays vary over the same mesh axes, so that all their cotangents do.

    Only inside a `jax.shard_map` that checks replication do the axes differ, say for images of
    each device and one kernel; the cast's own transposition then sums the kernel's gradient.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
    return tuple(
        lax.pcast(array, axes, to="varying") for array, axes in zip(arrays, missing, strict=True)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _output(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    output: jax.Array = lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_canonical_output, stride=stride),
        default=functools.partial(_plain, stride=stride),
    )
    return output


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(g: jax.Array, kernel: jax.Array, stride: int, size: _Size) -> jax.Array:
    gradient: jax.Array = lax.platform_dependent(
        g,
        kernel,
        cpu=functools.partial(_canonical_input_gradient, stride=stride, size=size),
        default=functools.partial(_derived_input_gradient, stride=stride, size=size),
    )
    return gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(x: jax.Array, g: jax.Array, stride: int, kernel_size: int) -> jax.Array:
    gradient: jax.Array = lax.platform_dependent(
        x,
        g,
        cpu=functools.partial(_canonical_kernel_gradient, stride=stride, kernel_size=kernel_size),
        default=functools.partial(_derived_kernel_gradient, stride=stride, kernel_size=kernel_size),
    )
    return gradient


def _output_fwd(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, _Pair]:
    return _output(x, kernel, stride), (x, kernel)


def _output_bwd(stride: int, residuals: _Pair, g: jax.Array) -> _Pair:
    x, kernel = residuals
    return (
        _input_gradient(g, kernel, stride, x.shape[1:3]),
        _kernel_gradient(x, g, stride, kernel.shape[0]),
    )


def _input_gradient_fwd(
    g: jax.Array, kernel: jax.Array, stride: int, size: _Size
) -> tuple[jax.Array, _Pair]:
    return _input_gradient(g, kernel, stride, size), (g, kernel)


def _input_gradient_bwd(stride: int, size: _Size, residuals: _Pair, x: jax.Array) -> _Pair:
    g, kernel = residuals
    return _output(x, kernel, stride), _kernel_gradient(x, g, stride, kernel.shape[0])


def _kernel_gradient_fwd(
    x: jax.Array, g: jax.Array, stride: int, kernel_size: int
) -> tuple[jax.Array, _Pair]:
    return _kernel_gradient(x, g, stride, kernel_size), (x, g)


def _kernel_gradient_bwd(
    stride: int, kernel_size: int, residuals: _Pair, kernel: jax.Array
) -> _Pair:
    x, g = residuals
    return _input_gradient(g, kernel, stride, x.shape[1:3]), _output(x, kernel, stride)


_output.defvjp(_output_fwd, _output_bwd)
_input_gradient.defvjp(_input_gradient_fwd, _input_gradient_bwd)
_kernel_gradient.defvjp(_kernel_gradient_fwd, _kernel_gradient_bwd)


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution itself, in XLA's canonical form."""
    padding = (kernel.shape[0] // 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=_LAYOUT
    )


def _derived_input_gradient(g: jax.Array, kernel: jax.Array, stride: int, size: _Size) -> jax.Array:
    """The form of JAX's own derivative, which GPU and TPU compilers look for."""
    before = kernel.shape[0] // 2
    padding = [
        (before, length - 1 + before - (outputs - 1) * stride)
        for length, outputs in zip(size, g.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        g,
        lax.rev(kernel, (0, 1)),
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def _derived_kernel_gradient(
    x: jax.Array, g: jax.Array, stride: int, kernel_size: int
) -> jax.Array:
    """The form of JAX's own derivative, which GPU and TPU compilers look for."""
    return lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        _kernel_gradient_padding(x, g, stride, kernel_size),
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )


def _kernel_gradient_padding(
    x: jax.Array, g: jax.Array, stride: int, kernel_size: int
) -> list[_Size]:
    before = kernel_size // 2
    return [
        (before, (outputs - 1) * stride + kernel_size - before - length)
        for outputs, length in zip(g.shape[1:3], x.shape[1:3], strict=True)
    ]


def _suits_winograd(kernel_shape: tuple[int, ...], stride: int, dtype: jnp.dtype) -> bool:
    wide = min(kernel_shape[2:]) >= _MIN_CHANNELS_WINOGRAD
    # Its sums cancel digits, of which bfloat16 has none to spare.
    return kernel_shape[:2] == (3, 3) and stride == 1 and wide and dtype != jnp.bfloat16


def _canonical_output(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    if _suits_winograd(kernel.shape, stride, x.dtype):
        return winograd.convolve(x, kernel)
    return _plain(x, kernel, stride)


def _canonical_input_gradient(
    g: jax.Array, kernel: jax.Array, stride: int, size: _Size
) -> jax.Array:
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


def _canonical_kernel_gradient(
    x: jax.Array, g: jax.Array, stride: int, kernel_size: int
) -> jax.Array:
    """Convolves the images with `g` as the kernel, their channels taken as the batch."""
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
        _kernel_gradient_padding(x, g, stride, kernel_size),
        rhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )
    return gradient.transpose(1, 2, 0, 3)

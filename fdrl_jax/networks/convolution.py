"""The two-dimensional convolution of the estimators, with derivatives that stay fast on CPU.

On CPU, XLA runs a convolution fast only in canonical form: NHWC images, an HWIO kernel, and no
dilation. JAX's own derivatives are not canonical, and inside a loop such as a flow they run up to a
hundred times slower. A convolution and its derivatives of every order consist of three bilinear
maps, and the derivatives of each are the other two:

    output(x, w)
    input_gradient(g, w) = d <g, output(x, w)> / dx
    kernel_gradient(x, g) = d <g, output(x, w)> / dw

This module has that rule and XLA's own forms of the three maps, which the compilers for GPU and TPU
recognise. Their canonical forms are in `convolution_cpu`. Reverse mode works to any order. Forward
mode needs `implementation="xla"`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax import _names
from fdrl_jax.networks import convolution_cpu

IMPLEMENTATIONS = ("custom", "xla")
_Size = tuple[int, int]
_Pair = tuple[jax.Array, ...]
_OPERANDS = {"g": ("x", "w"), "x": ("g", "w"), "w": ("x", "g")}  # Of the map to each array.


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, *, implementation: str = "custom"
) -> jax.Array:
    """Convolves images with an odd square kernel under zero padding `k // 2`.

    Args:
      x: images `[B, H, W, C_in]`.
      kernel: weights `[k, k, C_in, C_out]` with odd `k`, of the type of `x`.
      stride: distance between output positions, at least 1.
      implementation: `"custom"` for derivatives that are fast on every device, in reverse mode
        only; `"xla"` for JAX's own, which are slow on CPU but support forward mode (`jax.jvp`,
        `jax.jacfwd`, `jax.hessian`).

    Returns:
      Images `[B, ceil(H / stride), ceil(W / stride), C_out]`.

    Raises:
      ValueError: if the kernel is not square with an odd size, the stride is below 1, or the
        implementation is unknown.
      TypeError: for forward mode through the custom implementation.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must be square with an odd size, got {kernel.shape[:2]}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    _names.check("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "xla":
        return convolution_cpu.plain(x, kernel, stride)
    try:
        geometry = _Geometry(stride, x.shape[1:3], kernel.shape[0])
        return _bilinear("g", geometry, *_cast_to_same_axes(x, kernel))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "this convolution supports reverse mode only; for forward mode (jax.jvp, jax.jacfwd, "
            'jax.hessian) use implementation="xla" of convolve, Conv or resnet'
        ) from error


def add_bias(y: jax.Array, bias: jax.Array, *, implementation: str = "custom") -> jax.Array:
    """Adds a number per channel, with a gradient that is fast on CPU.

    Args:
      y: images `[B, H, W, C]`.
      bias: `[C]`, of the type of `y`.
      implementation: as in `convolve`.

    Returns:
      Images `[B, H, W, C]`.
    """
    if implementation == "xla":
        return y + bias
    y, bias = _cast_to_same_axes(y, bias)
    return y + _spread(y.shape, bias)


def _cast_to_same_axes(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Casts arrays to vary over the same mesh axes, so that all their cotangents do.

    The axes differ only inside a `jax.shard_map` that checks replication, for instance if images
    vary over devices and the kernel does not. The transpose of the cast then sums the kernel's
    gradient.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
    return tuple(
        lax.pcast(array, axes, to="varying") for array, axes in zip(arrays, missing, strict=True)
    )


class _Geometry(NamedTuple):
    """What the shapes of two operands do not determine of the third."""

    stride: int
    size: tuple[int, ...]
    kernel_size: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bilinear(wanted: str, geometry: _Geometry, *operands: jax.Array) -> jax.Array:
    """Computes one of the three maps of the other two arrays.

    `<g, output(x, w)>` is linear in each of x, w and g. The wanted array is its derivative by one
    of them, so the derivatives of a map by its operands are the other two maps.
    """
    stride, size, kernel_size = geometry
    forms: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], Any]] = {
        "g": (convolution_cpu.output, convolution_cpu.plain, ()),
        "x": (convolution_cpu.input_gradient, _derived_input_gradient, (size,)),
        "w": (convolution_cpu.kernel_gradient, _derived_kernel_gradient, (kernel_size,)),
    }
    cpu, default, rest = forms[wanted]
    result: jax.Array = lax.platform_dependent(
        *operands,
        cpu=lambda *ab: cpu(*ab, stride, *rest),
        default=lambda *ab: default(*ab, stride, *rest),
    )
    return result


def _bilinear_fwd(
    wanted: str, geometry: _Geometry, *operands: jax.Array
) -> tuple[jax.Array, _Pair]:
    return _bilinear(wanted, geometry, *operands), operands


def _bilinear_bwd(wanted: str, geometry: _Geometry, operands: _Pair, cotangent: jax.Array) -> _Pair:
    known = dict(zip(_OPERANDS[wanted], operands, strict=True)) | {wanted: cotangent}
    first, second = (
        _bilinear(name, geometry, *(known[n] for n in _OPERANDS[name]))
        for name in _OPERANDS[wanted]
    )
    return first, second


_bilinear.defvjp(_bilinear_fwd, _bilinear_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(shape: tuple[int, ...], bias: jax.Array) -> jax.Array:
    """Repeats a number per channel at all positions."""
    return jnp.broadcast_to(bias, shape)


def _spread_fwd(shape: tuple[int, ...], bias: jax.Array) -> tuple[jax.Array, None]:
    return _spread(shape, bias), None


def _spread_bwd(_: tuple[int, ...], __: None, g: jax.Array) -> tuple[jax.Array]:
    total: jax.Array = lax.platform_dependent(
        g, cpu=convolution_cpu.channel_sums, default=lambda g: g.sum((0, 1, 2))
    )
    return (total,)


_spread.defvjp(_spread_fwd, _spread_bwd)


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
        convolution_cpu.kernel_gradient_padding(x, g, stride, kernel_size),
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )

"""The two-dimensional convolution of the estimators, with derivatives that stay fast on CPU.

On CPU, XLA runs a convolution fast only in canonical form: NHWC images, an HWIO kernel, and no
dilation. JAX's own derivatives are not canonical, and inside a loop such as a flow they run up to a
hundred times slower. A convolution and its derivatives of every order consist of three bilinear
maps, and the derivatives of each are the other two:

    output(x, w)
    input_gradient(g, w) = d <g, output(x, w)> / dx
    kernel_gradient(x, g) = d <g, output(x, w)> / dw

On GPU and TPU, the three maps are JAX's own, which their compilers recognise. On CPU:

- In float32, Winograd's algorithm saves 15% of a training step of configs/cifar10_small.py (one
  core of an AMD EPYC with AVX-512).
- In bfloat16, with oneDNN (JAX 0.12, an XLA flag, and a processor with AMX or avx512_bf16), direct
  convolutions are faster.
- Kernel gradients are matrix products: as bfloat16 convolutions, oneDNN returns wrong results for
  2, 4 and 8 images. Its matrix products may read NaN past the end of a bfloat16 contraction whose
  length is not a multiple of 32, so contractions are padded to a multiple.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
_Size = tuple[int, int]
# Stride, size of the input and of the kernel, which two operands do not determine of the third.
_Geometry = tuple[int, tuple[int, ...], int]
# The two arrays that the map to each array takes.
_OPERANDS = {"g": ("x", "w"), "x": ("g", "w"), "w": ("x", "g")}
_CACHE_BYTES = 2**21  # The second-level cache of a core has 1 or 2 MB on most servers.
_MIN_CHANNELS_WINOGRAD = 16  # With fewer channels, the transforms cost more than they save.


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves images with an odd square kernel under zero padding `k // 2`.

    Derivatives of every order are fast on every device, in reverse mode only.

    Args:
      x: images `[B, H, W, C_in]`; the result has `ceil(H / stride)` rows.
      kernel: weights `[k, k, C_in, C_out]` with odd `k`, of the type of `x`.
      stride: distance between output positions, at least 1.

    Raises:
      ValueError: if the kernel is not square with an odd size, or the stride is below 1.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel must be square with an odd size, got {kernel.shape[:2]}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    geometry = stride, x.shape[1:3], kernel.shape[0]
    return _bilinear("g", geometry, *_cast_to_same_axes(x, kernel))


def add_bias(y: Array, bias: Array) -> Array:
    """Adds a number per channel, [C], to images [B, H, W, C]; its gradient is fast on CPU."""
    y, bias = _cast_to_same_axes(y, bias)
    return y + _spread(y.shape, bias)


def matmul(x: Array, kernel: Array) -> Array:
    """Returns `x @ kernel`, [..., N] and [N, M], within the bounds of oneDNN."""
    return _padded(x, -1) @ _padded(kernel, 0)


def _cast_to_same_axes(*arrays: Array) -> tuple[Array, ...]:
    """Casts arrays to vary over the same mesh axes, so that all their cotangents do.

    The axes differ only inside a `jax.shard_map` that checks replication, if images vary over
    devices and the kernel does not. The transpose of the cast then sums the kernel's gradient.
    """
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    missing = [tuple(sorted(frozenset().union(*varying) - own)) for own in varying]
    return tuple(
        lax.pcast(array, axes, to="varying") for array, axes in zip(arrays, missing, strict=True)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bilinear(wanted: str, geometry: _Geometry, *operands: Array) -> Array:
    """Computes the derivative of `<g, output(x, w)>`, linear in each, by the wanted one of them."""
    stride, size, kernel_size = geometry

    def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], g: Array) -> Array:
        axes = tuple(jax.typeof(g).manual_axis_type.varying)
        anywhere = lax.pcast(jnp.zeros(shape, g.dtype), axes, to="varying")
        result: Array
        (result,) = jax.vjp(linear, anywhere)[1](g)  # The value of `linear` is never computed.
        return result

    def of_input(g: Array, w: Array) -> Array:
        return transposed(lambda x: _conv(x, w, stride), (g.shape[0], *size, w.shape[2]), g)

    def of_kernel(x: Array, g: Array) -> Array:
        shape = (kernel_size, kernel_size, x.shape[3], g.shape[3])
        return transposed(lambda w: _conv(x, w, stride), shape, g)

    cpu, default = {
        "g": (lambda x, w: _output(x, w, stride), lambda x, w: _conv(x, w, stride)),
        "x": (lambda g, w: _input_gradient(g, w, stride, size), of_input),
        "w": (lambda x, g: _kernel_gradient(x, g, stride, kernel_size), of_kernel),
    }[wanted]
    result: Array = lax.platform_dependent(*operands, cpu=cpu, default=default)
    return result


def _bilinear_bwd(wanted: str, geometry: _Geometry, operands: Any, cotangent: Array) -> Any:
    known = dict(zip(_OPERANDS[wanted], operands, strict=True)) | {wanted: cotangent}
    return tuple(
        _bilinear(name, geometry, *(known[n] for n in _OPERANDS[name]))
        for name in _OPERANDS[wanted]
    )


_bilinear.defvjp(lambda *arguments: (_bilinear(*arguments), arguments[2:]), _bilinear_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(shape: tuple[int, ...], bias: Array) -> Array:
    return jnp.broadcast_to(bias, shape)


def _spread_bwd(_: tuple[int, ...], __: None, g: Array) -> tuple[Array]:
    def channel_sums(g: Array) -> Array:
        # XLA turns a large sum into windows that stride over the whole array once per channel,
        # which takes up to six times as long as a matrix product.
        rows = g.reshape(-1, g.shape[3])
        return matmul(jnp.ones((1, rows.shape[0]), g.dtype), rows)[0]

    total: Array = lax.platform_dependent(g, cpu=channel_sums, default=lambda g: g.sum((0, 1, 2)))
    return (total,)


_spread.defvjp(lambda *arguments: (_spread(*arguments), None), _spread_bwd)


def _conv(x: Array, kernel: Array, stride: int, padding: Sequence[_Size] = ()) -> Array:
    padding = padding or [(kernel.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _output(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution on CPU, by Winograd's algorithm where it is faster."""
    wide = min(kernel.shape[2:]) >= _MIN_CHANNELS_WINOGRAD
    # The sums of Winograd's algorithm lose too many digits to cancellation for bfloat16.
    if kernel.shape[:2] == (3, 3) and stride == 1 and wide and x.dtype != jnp.bfloat16:
        return _winograd(x, kernel)
    return _conv(x, kernel, stride)


def _input_gradient(g: Array, kernel: Array, stride: int, size: tuple[int, ...]) -> Array:
    """Convolves `g` once for every phase of the input's positions, then interleaves the phases.

    An input position `stride * i + phase` contributes to the output position `i + d` through the
    tap `t` with `stride * d = phase + k // 2 - t`. For one phase, the gradient is therefore a
    convolution of `g` with those taps for which `d` is an integer, in the order of `d`.
    """
    if stride == 1:
        return _output(g, _fixed(kernel[::-1, ::-1].swapaxes(2, 3)), 1)
    counts = tuple(-(-length // stride) for length in size)

    def image(row: int, column: int) -> Array:
        rows, row_padding = _phase(kernel.shape[0], stride, row, counts[0], g.shape[1])
        columns, padding = _phase(kernel.shape[1], stride, column, counts[1], g.shape[2])
        part = kernel[rows, columns].swapaxes(2, 3)
        if not part.size:
            return jnp.zeros((g.shape[0], *counts, kernel.shape[2]), g.dtype)
        return _conv(g, _fixed(part), 1, (row_padding, padding))

    phases = jnp.stack(
        [jnp.stack([image(i, j) for j in range(stride)], axis=3) for i in range(stride)], axis=2
    )
    whole = phases.reshape(g.shape[0], counts[0] * stride, counts[1] * stride, kernel.shape[2])
    return whole[:, : size[0], : size[1]]


def _fixed(kernel: Array) -> Array:
    # XLA would fold a reversal and a transposition into the convolution, which is then no longer
    # canonical. The barrier also moves them out of a loop.
    result: Array = lax.optimization_barrier(kernel)  # type: ignore[no-untyped-call]
    return result


def _phase(
    kernel_size: int, stride: int, phase: int, count: int, length: int
) -> tuple[slice, _Size]:
    """Taps of one phase along one axis, last first, and the padding of `length` to `count`."""
    centre = phase + kernel_size // 2
    if not (taps := range(centre % stride, kernel_size, stride)):
        return slice(0, 0), (0, 0)
    before = (taps[-1] - centre) // stride
    after = count - 1 + (centre - taps[0]) // stride - (length - 1)
    return slice(taps[-1], taps[0] - 1 if taps[0] else None, -stride), (before, after)


def _kernel_gradient(x: Array, g: Array, stride: int, kernel_size: int) -> Array:
    """Sums matrix products over groups of images, whose operands stay in the cache."""
    num: Any = x.shape[0]
    if not isinstance(num, int):  # The batch of an export is symbolic.
        return _products(x, g, stride, kernel_size)
    pixels = math.prod(x.shape[1:]) // stride + math.prod(g.shape[1:])
    largest = _CACHE_BYTES // (kernel_size * pixels * x.dtype.itemsize)
    size = next((n for n in range(min(largest, num), 0, -1) if num % n == 0), 1)
    if size >= num:
        return _products(x, g, stride, kernel_size)

    def add_group(i: Array, total: Array) -> Array:
        x_part, g_part = (lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, g))
        return total + _products(x_part, g_part, stride, kernel_size)

    shape = (kernel_size, kernel_size, x.shape[3], g.shape[3])
    zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(jax.typeof(x).manual_axis_type.varying)
    total: Array = lax.fori_loop(0, num // size, add_group, lax.pcast(zero, axes, to="varying"))
    return total.astype(x.dtype)


def _products(x: Array, g: Array, stride: int, kernel_size: int) -> Array:
    """Makes one matrix product per phase of the rows of `x`, over all positions of all images.

    `x` is shifted along the columns and `g` along the rows, so that one product has all pairs of
    shifts. A row `stride * i + phase` of `x` meets the row `i - d` of `g` through the tap `t` with
    `stride * d = t - k // 2 - phase`. The products have the type of the images: for float32
    results, XLA would convert bfloat16 operands first. It accumulates in float32 in any case.
    """
    channels, features, before = x.shape[3], g.shape[3], kernel_size // 2
    stop, taps, zero = (g.shape[2] - 1) * stride + 1, range(kernel_size), jnp.zeros((), x.dtype)
    columns = (before, stop - 1 + kernel_size - before - x.shape[2], 0)
    padded = lax.pad(x, zero, ((0, 0, 0), (0, 0, 0), columns, (0, 0, 0)))
    shifted = jnp.concatenate(
        [lax.slice_in_dim(padded, tap, tap + stop, stride, 2) for tap in taps], axis=3
    )
    gradients: dict[int, Array] = {}
    for phase in range(stride):
        left = shifted[:, phase::stride]
        count = left.shape[1]
        shifts = {t: (t - before) // stride for t in taps if (t - before) % stride == phase}
        if not shifts:
            continue
        ends = [(d, count - g.shape[1] - d, 0) for d in shifts.values()]
        right = jnp.concatenate(
            [lax.pad(g, zero, ((0, 0, 0), end, (0, 0, 0), (0, 0, 0))) for end in ends], axis=3
        )
        product = lax.dot_general(
            _padded(left.reshape(-1, kernel_size * channels), 0),
            _padded(right.reshape(-1, len(shifts) * features), 0),
            (((0,), (0,)), ((), ())),
        )
        parts = product.reshape(kernel_size, channels, len(shifts), features)
        gradients |= {tap: parts[:, :, i] for i, tap in enumerate(shifts)}
    return jnp.stack([gradients[tap] for tap in taps])


def _padded(array: Array, axis: int) -> Array:
    """Appends zeros along the axis of a contraction that could be read past its end."""
    missing = -array.shape[axis] % 32 if array.dtype == jnp.bfloat16 else 0
    widths = [(0, missing if i == axis % array.ndim else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths)


def _winograd(x: Array, kernel: Array) -> Array:
    """Convolves with a 3x3 kernel under zero padding 1, with two thirds of the multiplications.

    F(2, 3) along the rows computes two rows of outputs from four rows `d` of the input and the
    three rows `k` of the kernel, `A^T [(G k) * (B^T d)]`. Each entry of the bracket is a 1x3
    convolution along the columns. F(4, 3) is faster, but its float32 errors of 1e-6 move
    activations across the kink of LeakyReLU, which changes input gradients by 1e-3.

    Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    """
    height = x.shape[1]
    num_tiles = -(-height // 2)
    padded = jnp.pad(x, ((0, 0), (1, 1 + 2 * num_tiles - height), (0, 0), (0, 0)))
    d = [lax.slice_in_dim(padded, i, i + 2 * num_tiles - 1, 2, axis=1) for i in range(4)]
    mixed = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    transformed = jnp.einsum("ai,ijco->ajco", jnp.asarray(mixed, kernel.dtype), kernel)
    # Behind a barrier, the weights of each product are an array of their own, which XLA moves out
    # of a loop. It would repeat mere slices in each iteration.
    weights = [_fixed(transformed[a : a + 1]) for a in range(4)]
    rows = (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])
    m = [_conv(row, weight, 1, ((0, 0), (1, 1))) for row, weight in zip(rows, weights, strict=True)]
    tiles = jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis=2)
    return tiles.reshape(x.shape[0], 2 * num_tiles, *tiles.shape[3:])[:, :height]

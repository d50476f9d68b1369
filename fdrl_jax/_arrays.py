"""Arrays of any type as they are computed with: in at least float32, and per device."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def as_floating(x: Any) -> Array:
    """Converts integers and halves to float32: in bfloat16 a flow stalls, as 1 + 0.001 is 1."""
    of_array = getattr(getattr(x, "dtype", None), "kind", "f")
    if x is None or isinstance(x, Mapping) or of_array in "cOSU":
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"points must be one array of real numbers, [B, ...], got {got}")
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        x = x.astype(np.float32)  # JAX would make int32 of int64, and wrap around.
    x = jnp.asarray(x)
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    wide: Array = x if is_wide else x.astype(jnp.float32)
    return wide


def at_least_float32(array: Array) -> Array:
    """Converts floating-point numbers of less than 32 bits to float32, and nothing else."""
    return array.astype(jnp.float32) if _is_half(array) else array


def evaluate(function: Callable[[Array], Array], x: Array) -> Array:
    """Evaluates `x [B, ...] -> [B]`, with value and gradient by `x` in at least float32.

    The chain rule would convert the outer factor, such as `exp(log r)`, to the type of the
    function, where float16 overflows at 65,504. Here the product of gradient and factor is computed
    in float32, which is possible because an output depends on its own example only.
    """
    value = function(x)
    if not _is_half(value):
        return value
    converted, closed_over = jax.closure_convert(function, x)
    wide: Array = _wide(lambda *inputs: converted(*inputs).astype(jnp.float32), x, *closed_over)
    return wide


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(function: Callable[..., Array], *inputs: Array) -> Array:
    return function(*inputs)


def _forward(function: Callable[..., Array], *inputs: Array) -> tuple[Array, Any]:
    value, pull_back = jax.vjp(function, *inputs)
    gradient, *_ = pull_back(jnp.ones_like(value))
    return value, (gradient, pull_back)


def _backward(_: Callable[..., Array], residuals: Any, factor: Array) -> tuple[Array, ...]:
    gradient, pull_back = residuals
    _, *of_closed_over = pull_back(factor)
    columns = factor.reshape(factor.shape + (1,) * (gradient.ndim - factor.ndim))
    return ((gradient * columns).astype(gradient.dtype), *of_closed_over)


_wide.defvjp(_forward, _backward)


def _is_half(array: Array) -> bool:
    dtype = jnp.result_type(array)
    return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize < 4


def vary_with(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Marks arrays as different on each device if a function of them is.

    In a `jax.shard_map` that checks replication, a gradient by an array that the devices share is a
    sum over the devices; that by a marked array is not. Elsewhere, this does nothing.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    leaves = jax.tree.leaves(tree)
    shared = [axis for axis in axes if any(axis not in _varying(jax.typeof(a)) for a in leaves)]
    # Without the check, no array is marked, not even the index of the device.
    if not shared or not _varying(jax.eval_shape(lambda: lax.axis_index(shared[0]))):
        return tree
    results = jax.tree.leaves(jax.eval_shape(function, tree))
    return vary_over(tree, [a for a in shared if any(a in _varying(r) for r in results)])


def vary_over(tree: Any, axes: Iterable[str]) -> Any:
    """Marks arrays as different along mapped axes, without changing their values."""
    for axis in axes:  # `lax.pcast` would do the same, but it does not support `vmap`.
        tree = jax.tree.map(functools.partial(jnp.where, lax.axis_index(axis) >= 0), tree, tree)
    return tree


def _varying(kind: Any) -> frozenset[str]:
    axes: frozenset[str] = kind.manual_axis_type.varying if kind.manual_axis_type else frozenset()
    return axes

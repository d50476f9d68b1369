"""Outputs of networks in half precision, used in at least float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def at_least_float32(array: Array) -> Array:
    """Converts floating-point numbers of less than 32 bits to float32, and nothing else."""
    return array.astype(jnp.float32) if _is_half(array) else array


def evaluate(function: Callable[[Array], Array], x: Array) -> Array:
    """Evaluates `x [B, ...] -> [B]`, with value and gradient by `x` in at least float32.

    It is not enough to convert the value. The chain rule starts with the outer factor, such as
    `exp(log r)`, and would convert it to the type of the function, where float16 overflows at
    65,504. Here the gradient of the function is computed first, and its product with that factor
    in float32, which is possible because an output depends on its own example only.
    """
    value = function(x)
    if not _is_half(value):
        return value
    converted, closed_over = jax.closure_convert(function, x)
    wide: Array = _wide(lambda *inputs: converted(*inputs).astype(jnp.float32), x, *closed_over)
    return wide


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide(function: Callable[..., Array], x: Array, *closed_over: Array) -> Array:
    return function(x, *closed_over)


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

"""Random keys of a batch: one for all of its examples, or one per example."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def typed(key: Array) -> Array:
    """Returns a typed key, or several, also for raw uint32 keys of `jax.random.PRNGKey`."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(
            f"key must be a JAX key, such as jax.random.key(0), got {type(key).__name__} {key!r}"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim and (name := str(jax.random.key_impl(key))) != "threefry2x32":
        raise ValueError(
            f"one key per example needs the generator 'threefry2x32', got {name!r}, whose numbers "
            "depend on the batch; make the root key with fdrl_jax.training.rng.root_key(seed)"
        )
    return key


def of_batch(key: Array, x: Array) -> Array:
    """Returns the typed key of a batch `x` [B, ...], or the typed keys of its examples, [B]."""
    key = typed(key)
    # [1] keys would give all examples the same noise. `len` rejects a symbolic batch size.
    if key.ndim and (num := key.shape[0]) != x.shape[0]:
        raise ValueError(f"expected one key, or one key per example, got {num} for {x.shape[0]}")
    return key


def named(key: Array, purpose: str) -> Array:
    """Returns the key for one purpose, or the keys of it, [B].

    `fold_in(key, i)` is `split(key)[i]`, so a function that numbers its draws from 0 would repeat
    what its caller drew from the parts of the same key. The number of a purpose is far from 0.
    """
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    found: Array = fold_in(key, zlib.crc32(purpose.encode()))
    return found


def at_positions(key: Array, positions: Array) -> Array:
    """Returns one key per position, [B], from one key and integers, [B]."""
    # 0.2 and 0.7 would give the same key.
    if not jnp.issubdtype(dtype := jnp.result_type(positions), jnp.integer):
        raise ValueError(f"positions must be integers, got {dtype}")
    return typed(jax.vmap(jax.random.fold_in, (None, 0))(key, positions))


def noise_like(key: Array, x: Array, draw: Callable[..., Array] = jax.random.normal) -> Array:
    """Draws noise of the shape and dtype of `x`, with the keys and errors of `of_batch`."""
    key = of_batch(key, x)
    if key.ndim == 0:
        return draw(key, x.shape, x.dtype)
    return jax.vmap(lambda k: draw(k, x.shape[1:], x.dtype))(key)

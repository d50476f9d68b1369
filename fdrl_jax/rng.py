"""Random numbers that depend only on (seed, purpose, position).

Every example of a run has a position: `step * global_batch + index` in training, and the index of
the sample in sampling. A key is a function of the root key, its purpose and the position, and never
of a carried state, a batch size or a device. A resumed run therefore repeats the uninterrupted run
exactly, and sample `i` is the same in a batch of 10 on a laptop as in one of 10,000 on a pod.
"""

import enum

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Stream(enum.IntEnum):
    """The purposes of random numbers, each with an independent stream."""

    INIT = 0
    DATA = 1
    DEQUANTISATION = 2
    PRIOR = 3
    FLOW = 4
    SAMPLE = 5  # Root of the streams of sampling, which keeps them apart from those of training.


def root_key(seed: int) -> Array:
    """Returns the root key for a seed, of the generator with the guarantees above.

    JAX can be configured to make other keys by default (`jax_default_prng_impl="rbg"`, common on
    TPUs). With those, the numbers of an example depend on its batch.
    """
    return jax.random.key(seed, impl="threefry2x32")


def check_independent(keys: Array) -> None:
    """Checks that keys per example give an example the same numbers in every batch.

    Args:
      keys: typed keys.

    Raises:
      ValueError: for keys of another generator than "threefry2x32".
    """
    if (name := str(jax.random.key_impl(keys))) != "threefry2x32":
        raise ValueError(
            f"one key per example needs the generator 'threefry2x32', got {name!r}, whose numbers "
            "depend on the batch; make the root key with fdrl_jax.rng.root_key(seed)"
        )


def typed(key: Array) -> Array:
    """Returns a typed key, also for a raw uint32 key of `jax.random.PRNGKey`.

    Raises:
      TypeError: for anything else, such as a seed.
      ValueError: for several keys of another generator than "threefry2x32".
    """
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(
            f"key must be a JAX key, such as jax.random.key(0), got {type(key).__name__} {key!r}"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim:
        check_independent(key)
    return key


def stream_key(root: Array, stream: Stream) -> Array:
    """Returns the key of a stream under a root key."""
    return jax.random.fold_in(root, int(stream))


def example_keys(root: Array, stream: Stream, positions: Array) -> Array:
    """Returns one key per example.

    Args:
      root: a typed key, from `root_key`.
      stream: the purpose of the numbers.
      positions: the examples' positions, [B] integers.

    Returns:
      Typed keys, [B].

    Raises:
      ValueError: for a root key of another generator than "threefry2x32".
    """
    check_independent(root)
    keys: Array = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(root, stream), positions)
    return keys


def batch_positions(step: Array, batch_size: int, axis_name: str | None = None) -> Array:
    """Returns the positions of a replica's examples in a train step.

    Args:
      step: the number of the batch, from 0, an integer scalar.
      batch_size: examples per replica.
      axis_name: the mapped axis of replicas, or `None` if there is none.

    Returns:
      Positions, [batch_size] uint32, consecutive over the replicas of a step and over steps. They
      wrap around to 0 after 2^32 examples.
    """
    if axis_name is None:
        replica, num_replicas = jnp.uint32(0), 1
    else:
        replica, num_replicas = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    first: Array = (jnp.uint32(step) * num_replicas + jnp.uint32(replica)) * batch_size
    return first + jnp.arange(batch_size, dtype=jnp.uint32)


def of_batch(key: Array, x: Array) -> Array:
    """Returns the typed key of a batch, or the typed keys of its examples.

    Args:
      key: one key for the batch, or a key per example, [B].
      x: the batch, [B, ...].

    Raises:
      TypeError: for a key that is not a JAX key.
      ValueError: if there is neither one key nor one key per example, or for rbg keys per example.
    """
    key = typed(key)
    # [1] keys would give all examples the same noise. `len` rejects a symbolic batch size.
    if key.ndim and (num := key.shape[0]) != x.shape[0]:
        raise ValueError(f"expected one key, or one key per example, got {num} for {x.shape[0]}")
    return key


def normal_like(key: Array, x: Array) -> Array:
    """Draws standard normal noise of the shape and dtype of `x`, [B, ...].

    Args:
      key: one key for the batch, or a typed key per example, [B].
      x: a floating-point array.

    Raises:
      TypeError: as for `of_batch`.
      ValueError: as for `of_batch`.
    """
    key = of_batch(key, x)
    if key.ndim == 0:
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)

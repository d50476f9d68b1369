"""Random numbers that follow from (seed, purpose, position) alone.

Every example of a run has a position: in training `step * global_batch + index`, in sampling the
index of the sample. A key is a function of the root key, what it is used for and the position, and
never of a carried state, a batch size or a device. So a resumed run repeats the uninterrupted one
exactly, and sample `i` is the same in a batch of 10 on a laptop and of 10,000 on a pod.
"""

import enum

import jax
import jax.numpy as jnp

Array = jax.Array


class Stream(enum.IntEnum):
    """What random numbers are used for; one independent stream each."""

    INIT = 0
    DATA = 1
    DEQUANTISATION = 2
    PRIOR = 3
    FLOW = 4
    SAMPLE = 5  # Root of the streams of sampling, so that they are not those of training.


def stream_key(root: Array, stream: Stream) -> Array:
    """Returns the key of a stream under a root key."""
    return jax.random.fold_in(root, int(stream))


def example_keys(root: Array, stream: Stream, positions: Array) -> Array:
    """Returns a key for each example.

    Args:
      root: a typed key, as from `jax.random.key(seed)`.
      stream: what the numbers are for.
      positions: the examples' positions, [B] integers.

    Returns:
      Typed keys, [B].
    """
    keys: Array = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(root, stream), positions)
    return keys


def batch_positions(step: Array, batch_size: int, axis_name: str | None = None) -> Array:
    """Returns the positions of a replica's examples in a training step.

    Args:
      step: the training step, an integer scalar.
      batch_size: examples in this replica's batch.
      axis_name: the mapped axis of replicas, or `None` outside of one.

    Returns:
      Positions, [batch_size]: consecutive over the replicas of the step, and over steps.
    """
    if axis_name is None:
        replica, num_replicas = jnp.int32(0), 1
    else:
        replica, num_replicas = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    first: Array = (step * num_replicas + replica) * batch_size
    return first + jnp.arange(batch_size)

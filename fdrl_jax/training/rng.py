"""Random numbers that depend only on (seed, purpose, position).

Every example of a run has a position: `step * global_batch + index` in training, and the index of
the sample in sampling. A key is a function of the root key, its purpose and the position, and never
of a batch size or a device. So a resumed run repeats the uninterrupted run exactly, and sample `i`
is the same in any batch.
"""

import enum

import jax
import jax.numpy as jnp

from fdrl_jax import _keys

__all__ = ["Stream", "batch_positions", "example_keys", "root_key", "stream_key"]
__dir__ = __all__.copy

Array = jax.Array


class Stream(enum.Enum):
    """The purposes of random numbers, each with an independent stream."""

    INIT = enum.auto()
    DATA = enum.auto()
    AUGMENTATION = enum.auto()
    DEQUANTISATION = enum.auto()
    PRIOR = enum.auto()
    FLOW = enum.auto()
    SAMPLE = enum.auto()  # Root of the streams of sampling, which keeps them apart from training's.


def root_key(seed: int) -> Array:
    """Returns the root key for a seed, of the generator with the guarantees above.

    JAX can be configured to make other keys by default (`jax_default_prng_impl="rbg"`, common on
    TPUs). With those, the numbers of an example depend on its batch.
    """
    return jax.random.key(seed, impl="threefry2x32")


def stream_key(root: Array, stream: Stream) -> Array:
    """Returns the key of a stream under a root key."""
    return _keys.named(root, stream.name)


def example_keys(root: Array, stream: Stream, positions: Array) -> Array:
    """Returns one typed key per position, [B] integers, by a root key of "threefry2x32"."""
    return _keys.at_positions(stream_key(root, stream), positions)


def batch_positions(step: Array, batch_size: int, axis_name: str | None = None) -> Array:
    """Returns the positions, [batch_size], of a replica's examples in a training step from 0.

    They are uint32, consecutive over the replicas of the mapped axis and over steps, and wrap
    around to 0 after 2^32 examples.
    """
    if axis_name is None:
        replica, num_replicas = jnp.uint32(0), 1
    else:
        replica, num_replicas = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    first: Array = (jnp.uint32(step) * num_replicas + jnp.uint32(replica)) * batch_size
    return first + jnp.arange(batch_size, dtype=jnp.uint32)

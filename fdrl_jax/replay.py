"""Replayed particles: a share of a train step's particles go on from where the last step left them.

With a share `ρ` each step flows `(1 - ρ) K` steps only, and a particle starts anew from the prior
with probability `1 - ρ`: it flows about `K` steps before that, under estimators of several train
steps. This is beyond the paper; persistent chains of energy-based models are the idea's origin.

Reference: Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
gradient", ICML 2008.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def none_yet(batch_size: int, event_shape: Sequence[int]) -> Array:
    """Returns the particles before the first step, [batch_size, ...]: none of them can go on."""
    return jnp.full((batch_size, *event_shape), jnp.inf)


def restart(keys: Array, particles: Array, x0: Array, fraction: float) -> Array:
    """Returns where the flow of a step starts.

    Args:
      keys: a typed key for each particle, [B].
      particles: where the step before left them, [B, ...]. One that is not finite starts anew.
      x0: samples of the prior, [B, ...].
      fraction: probability `ρ` that a particle goes on.
    """
    goes_on = jax.vmap(lambda key: jax.random.bernoulli(key, fraction))(keys)
    axes = tuple(range(1, x0.ndim))
    goes_on &= jnp.all(jnp.isfinite(particles), axis=axes)
    return jnp.where(jnp.expand_dims(goes_on, axes), particles.astype(x0.dtype), x0)


def take(particles: Any, positions: Array) -> Any:
    """Returns the particles of the examples at some positions of the run, [B, ...].

    Args:
      particles: those of all replicas, [global batch, ...]; or nothing, an empty pytree.
      positions: as from `rng.batch_positions`.
    """
    return jax.tree.map(lambda a: a[positions % len(a)], particles)


def put(particles: Any, positions: Array, own: Any, axis_name: str | None) -> Any:
    """Returns the particles of all replicas after a step, the same on every replica.

    So a checkpoint of one replica holds them all, and a run may go on with other devices.

    Args:
      particles: those before the step, [global batch, ...], for their shape.
      positions: as from `rng.batch_positions`.
      own: particles of this replica, [B, ...].
      axis_name: the mapped axis of replicas, if any.
    """

    def of_all(before: Array, new: Array) -> Array:
        after = jnp.zeros_like(before).at[positions % len(before)].set(new)
        # A sum with zeros, not a gathering: `shard_map` knows that sums are the same everywhere.
        if axis_name is None:
            return after
        total: Array = lax.psum(after, axis_name)  # type: ignore[no-untyped-call]
        return total

    return jax.tree.map(of_all, particles, own)

"""What a data source gives to the training loop and to the evaluation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Source(NamedTuple):
    """A data set as arrays that live on the device and a pure function that draws from them.

    Attributes:
      name: as in the config.
      kind: "points" in the plane or "images" in [-1, 1], NHWC.
      event_shape: shape of one example.
      arrays: a pytree of arrays that `draw` reads.
      draw: `(arrays, host batch, key, positions [B]) -> {"real": [B, ...]}`, on the device; the key
        is one for the whole run, the positions are the examples' (see `fdrl_jax.rng`).
      train: `() -> examples [N, ...]`, the un-augmented training set, float32 (for the prior).
      held_out: `(num, seed) -> examples` that training never sees, float32: at most `num`.
      modes: centres of the modes of a mixture, [M, 2], if it is one.
      mode_std: standard deviation of each mode.
      labels: `() -> (train labels, held-out labels)`, if the data have any.
    """

    name: str
    kind: Literal["points", "images"]
    event_shape: tuple[int, ...]
    arrays: Any
    draw: Callable[[Any, Any, Array, Array], dict[str, Array]]
    train: Callable[[], np.ndarray]
    held_out: Callable[[int, int], np.ndarray]
    modes: np.ndarray | None = None
    mode_std: float | None = None
    labels: tuple[np.ndarray, np.ndarray] | None = None


def shuffled_indices(key: Array, positions: Array, num_examples: int) -> Array:
    """Maps positions of a run to examples: each epoch is a permutation of its own.

    Stateless: the permutation of an epoch follows from (key, epoch), so a resumed run goes on with
    exactly the examples that are due, and replicas that know only their positions share no example.

    Args:
      key: one typed key for the run.
      positions: consecutive positions, [B]; with B <= num_examples they touch two epochs at most.
      num_examples: size of the data set.

    Returns:
      Indices, [B].
    """
    epochs, offsets = jnp.divmod(positions, num_examples)
    first = epochs[0]
    order, next_order = (
        jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        for epoch in (first, first + 1)
    )
    return jnp.where(epochs == first, order[offsets], next_order[offsets])

"""What a data source gives to the training loop and to the evaluation."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.data.feed import Feed

Array = jax.Array


class Source(NamedTuple):
    """A data set, and one pure function that draws from it inside the train step.

    So there is one loop for all data. What is small enough lies on the device, where `draw` picks
    and augments and the host does nothing; what is not comes from the host as batches of a `Feed`,
    which `draw` only augments.

    Attributes:
      name: as in the config.
      kind: "points" in the plane or "images" in [-1, 1], NHWC.
      event_shape: shape of one example.
      arrays: a pytree of arrays that `draw` reads.
      draw: `(arrays, host batch, key, positions [B]) -> {"real": [B, ...]}`, on the device; the key
        is one for the whole run, the positions are the examples' (see `fdrl_jax.rng`). Paired
        domains have the images to start from under "source", data with labels that lie on the
        device the classes under "label", [B].
      train_batches: `() -> batches [B, ...]` of the whole un-augmented training set, float32, once:
        for the prior and for metrics.
      held_out: `(num, seed) -> examples` that training never sees, float32: at most `num`.
      modes: centres of the modes of a mixture, [M, 2], if it is one.
      mode_std: standard deviation of each mode.
      log_density: `points [N, 2] -> log p [N]` of the data, in nats, where it is known.
      labels: `(train labels, held-out labels)` by the same numbers, if the data have any: in the
        order of the images that `train_batches` and `held_out` give.
      classes: names of the classes by label; empty without labels.
      open_feed: `(seed, batch size of this process, batches to leave out, steps of a dispatch) ->
        Feed` for data that are streamed; `None` otherwise.
      starts: `(positions [B]) -> images [B, ...]` to start samples from, float32, for paired
        domains: held-out ones first, then those of training, then again from the beginning.
      num_starts: how many of them are held out, and how many there are in all.
      identity: a hash of what fixes the order of examples; a run goes on only with the same.
      fingerprint: a hash of the training set as `train_batches` gives it; a fitted prior is used
        again only with the same.
    """

    name: str
    kind: Literal["points", "images"]
    event_shape: tuple[int, ...]
    arrays: Any
    draw: Callable[[Any, Any, Array, Array], dict[str, Array]]
    train_batches: Callable[[], Iterator[np.ndarray]]
    held_out: Callable[[int, int], np.ndarray]
    modes: np.ndarray | None = None
    mode_std: float | None = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    labels: tuple[np.ndarray, np.ndarray] | None = None
    classes: tuple[str, ...] = ()
    open_feed: Callable[[int, int, int, int], Feed] | None = None
    starts: Callable[[np.ndarray], np.ndarray] | None = None
    num_starts: tuple[int, int] = (0, 0)
    identity: str = ""
    fingerprint: str = ""

    def train(self) -> np.ndarray:
        """Returns the un-augmented training set, [N, ...] float32: for sets that fit in memory."""
        return np.concatenate(list(self.train_batches()))


def shuffled_indices(key: Array, positions: Array, num_examples: int) -> Array:
    """Maps positions of a run to examples: each epoch is a permutation of its own.

    Stateless: the permutation of an epoch follows from (key, epoch), so a resumed run goes on with
    exactly the examples that are due, and replicas that know only their positions share no example.

    Args:
      key: one typed key for the run.
      positions: consecutive positions, [B].
      num_examples: size of the data set; if smaller than B, examples repeat within the batch.

    Returns:
      Indices, [B].
    """
    epochs, offsets = jnp.divmod(positions, num_examples)
    first = epochs[0]
    # As many epochs as B consecutive positions can touch.
    num_epochs = 1 + -(-len(positions) // num_examples)

    def order(i: int) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, first + i), num_examples)

    def order_if_needed(i: int) -> Array:
        # Sorting is what costs here, and most batches lie within one epoch.
        unused = jnp.zeros(num_examples, jnp.int32)
        return lax.cond(first + i <= epochs[-1], lambda: order(i), lambda: unused)

    orders = jnp.stack([order(0), *(order_if_needed(i) for i in range(1, num_epochs))])
    return orders[epochs - first, offsets]

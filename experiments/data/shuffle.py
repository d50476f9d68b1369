"""A stateless shuffle on the device: maps positions of a run to examples."""

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
# Up to this size a permutation is sorted, which costs at most 4 ms per step on a CPU.
MAX_SORTED = 10_000
_NUM_ROUNDS = 8


def shuffled_indices(key: Array, positions: Array, num_examples: int) -> Array:
    """Maps consecutive positions of a run, [B], to examples, with a new permutation in each epoch.

    The permutation of an epoch depends only on (key, epoch). A resumed run therefore continues with
    exactly the next examples, and replicas that know only their positions share no example. The
    permutation of a large set is never computed as a whole, so the cost is O(B). If the set has
    less than B examples, they repeat within the batch.

    Returns:
      Indices, [B].
    """
    if num_examples <= MAX_SORTED:
        return _sorted(key, positions, num_examples)

    def index(position: Array) -> Array:
        epoch, offset = jnp.divmod(position, num_examples)
        return permuted(jax.random.fold_in(key, epoch), offset, num_examples)

    return jax.vmap(index)(positions)


def permuted(key: Array, index: Array, num: int) -> Array:
    """Returns the value of a pseudorandom permutation of 0 to `num` - 1 at one index.

    A Feistel network permutes a rectangle of a x b >= `num` cells. Each round adds a hash of one
    coordinate to the other. A value out of range is permuted again until it is in range. The typed
    key chooses the permutation; index and value are integers, [].

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, sections 4 and 5.
    """
    # As close to a square as possible: fewer than a of the a x b cells are out of range.
    a = math.isqrt(num - 1) + 1
    b = -(-num // a)
    keys = jax.random.split(key, _NUM_ROUNDS)

    def hashed(round_key: Array, value: Array, modulus: int) -> Array:
        bits = jax.random.bits(jax.random.fold_in(round_key, value), dtype=jnp.uint32)
        return (bits % modulus).astype(jnp.int32)

    def permute(cell: Array) -> Array:
        row, column = jnp.divmod(cell, b)
        for i in range(0, _NUM_ROUNDS, 2):
            row = (row + hashed(keys[i], column, a)) % a
            column = (column + hashed(keys[i + 1], row, b)) % b
        return row * b + column

    def is_unfinished(carry: tuple[Array, Array]) -> Array:
        is_first, cell = carry
        return is_first | (cell >= num)

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.array(False), permute(carry[1])

    # The first round is in the loop too: two copies of it would take twice as long to compile.
    start = jnp.array(True), jnp.asarray(index, jnp.int32)
    return lax.while_loop(is_unfinished, again, start)[1]


def _sorted(key: Array, positions: Array, num_examples: int) -> Array:
    epochs, offsets = jnp.divmod(positions, num_examples)
    first = epochs[0]
    # As many epochs as B consecutive positions can touch.
    num_epochs = 1 + -(-len(positions) // num_examples)

    def order(i: int) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, first + i), num_examples)

    def order_if_needed(i: int) -> Array:
        # Sorting dominates the cost, and most batches are within one epoch.
        unused = jnp.zeros(num_examples, jnp.int32)
        return lax.cond(first + i <= epochs[-1], lambda: order(i), lambda: unused)

    orders = jnp.stack([order(0), *(order_if_needed(i) for i in range(1, num_epochs))])
    return orders[epochs - first, offsets]

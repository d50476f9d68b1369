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
    """Maps consecutive positions of a run, [B], to indices of examples, [B].

    Each epoch has a new permutation, which depends only on (key, epoch). A resumed run therefore
    continues with exactly the next examples, and replicas that know only their positions share no
    example. The permutation of a large set is never computed as a whole, so the cost is O(B). If
    the set has less than B examples, they repeat within the batch.
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
    key chooses the permutation; index and value are integers, []. `num` is at most 2^30.

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

    # The first cell is out of range, so that the loop has the only copy of `permute`; a second one
    # would take as long to compile again. Rows are modulo a, so adding a * b changes no result.
    start = jnp.asarray(index, jnp.int32) + a * b
    return lax.while_loop(lambda cell: cell >= num, permute, start)


def _sorted(key: Array, positions: Array, num_examples: int) -> Array:
    epochs, offsets = jnp.divmod(positions, num_examples)
    first = epochs[0]
    # As many epochs as B consecutive positions can touch.
    num_epochs = 1 + -(-len(positions) // num_examples)

    def order(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)

    def unused(epoch: Array) -> Array:
        return jnp.zeros(num_examples, jnp.int32)

    # Sorting dominates the cost, and most batches are within one epoch.
    others = [first + i for i in range(1, num_epochs)]
    orders = [order(first), *(lax.cond(e <= epochs[-1], order, unused, e) for e in others)]
    return jnp.stack(orders)[epochs - first, offsets]

"""A stateless shuffle on the device: maps positions of a run to examples."""

import math

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_NUM_ROUNDS = 8


def shuffled_indices(key: Array, positions: Array, num_examples: int) -> Array:
    """Maps positions of a run, [B], to indices of examples, [B], in a new order in each epoch.

    The order depends only on (key, epoch), so a resumed run continues with the next examples, and
    replicas share none. The cost is O(B). Sets of fewer than B examples repeat in the batch.
    """

    def index(position: Array) -> Array:
        epoch, offset = jnp.divmod(position, num_examples)
        return permuted(jax.random.fold_in(key, epoch), offset, num_examples)

    return jax.vmap(index)(positions)


def permuted(key: Array, index: Array, num: int) -> Array:
    """Returns the value of a pseudorandom permutation of 0 to `num` - 1 at one index.

    A Feistel network permutes a rectangle of a x b >= `num` cells: each round adds a hash of one
    coordinate to the other. A value out of range is permuted again. `num` is at most 2^30.
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
        def two_rounds(i: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            row, column = at
            row = (row + hashed(keys[2 * i], column, a)) % a
            return row, (column + hashed(keys[2 * i + 1], row, b)) % b

        # A loop, because unrolled hashes would dominate the compilation of a small training step.
        row, column = lax.fori_loop(0, _NUM_ROUNDS // 2, two_rounds, jnp.divmod(cell, b))
        return row * b + column

    # The first cell is out of range, so that the loop has the only copy of `permute`; a second one
    # would take as long to compile again. Rows are modulo a, so adding a * b changes no result.
    start = jnp.asarray(index, jnp.int32) + a * b
    return lax.while_loop(lambda cell: cell >= num, permute, start)

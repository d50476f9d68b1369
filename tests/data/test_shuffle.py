"""The shuffle on the device: every example once per epoch, as a pure function of the position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.shuffle import shuffled_indices

KEY = jax.random.key(5)


@functools.partial(jax.jit, static_argnums=(1, 2))
def shuffled(first, count, num, key=KEY):
    return shuffled_indices(key, first + jnp.arange(count), num)


@pytest.mark.parametrize("num", [1, 3, 100, 4_096, 10_001])
def test_every_epoch_has_every_example_once_in_its_own_order_whatever_the_batch(num):
    whole = np.asarray(shuffled(0, 3 * num, num))
    epochs = whole.reshape(3, num)
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3 or num < 4
    for first in (0, num - 3, 2 * num - 7) if num > 3 else ():
        np.testing.assert_array_equal(shuffled(first, 7, num), whole[first : first + 7])


def test_the_order_of_a_large_set_follows_from_the_key_and_looks_random():
    num = 100_000
    order, other = (np.asarray(shuffled(0, num, num, jax.random.key(i))) for i in (0, 1))
    # Of independent uniform numbers; a standard error is 1 / sqrt(num) = 0.003.
    positions = np.arange(num)
    for x, y in ((positions, order), (order[:-1], order[1:]), (order, other)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.015
    # Ten equal parts of the range in each tenth of the epoch: chi-squared with 81 degrees of
    # freedom, whose standard deviation is 13; it is smaller without replacement.
    counts = np.histogram2d(positions, order, bins=10)[0]
    assert 30 < ((counts - num / 100) ** 2 / (num / 100)).sum() < 140
    assert np.abs(np.diff(order) == 1).sum() < 10


def test_a_batch_costs_nothing_that_grows_with_the_set():
    program = str(jax.make_jaxpr(lambda p: shuffled_indices(KEY, p, 10**9))(jnp.arange(8)))
    assert "1000000000]" not in program
    assert "sort[" not in program

"""Random numbers depend only on (seed, purpose, position)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax.training import augmentation, rng
from fdrl_jax.training.rng import Stream


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_positions_count_the_examples_of_a_run_over_steps_and_replicas_without_gap_or_repeat():
    num_steps, num_replicas, batch_size = 3, 4, 5

    def positions(step):
        of_replica = jax.vmap(
            lambda _: rng.batch_positions(step, batch_size, "replicas"), axis_name="replicas"
        )
        return of_replica(jnp.arange(num_replicas))

    run = np.concatenate([positions(jnp.int32(step)).ravel() for step in range(num_steps)])

    np.testing.assert_array_equal(run, np.arange(num_steps * num_replicas * batch_size))


def test_keys_differ_between_seeds_streams_and_positions():
    keys = [
        data(rng.example_keys(jax.random.key(seed), stream, jnp.arange(50)))
        for seed, stream in itertools.product(range(3), Stream)
    ]
    rows = np.concatenate(keys)

    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * len(Stream) * 50


def test_a_key_depends_on_its_position_and_not_on_the_batch_around_it():
    root = jax.random.key(3)
    whole = data(rng.example_keys(root, Stream.FLOW, jnp.arange(10)))
    part = data(rng.example_keys(root, Stream.FLOW, jnp.array([8, 2])))

    np.testing.assert_array_equal(part, whole[[8, 2]])


def test_shifts_are_the_same_where_jax_computes_in_float64():
    images = np.arange(96, dtype=np.uint8).reshape(2, 6, 8, 1)
    expected = augmentation.shifted(rng.root_key(0), np.arange(2), images, 3)
    with jax.enable_x64(True):
        actual = augmentation.shifted(rng.root_key(0), np.arange(2), images, 3)
    np.testing.assert_array_equal(actual, expected)


def test_shifts_do_not_depend_on_which_image_the_same_key_draws():
    key, num, positions = rng.root_key(0), 50, jnp.arange(3_000)
    own_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    drawn = jax.vmap(lambda own: jax.random.randint(own, (), 0, num))(own_keys)
    images = np.zeros((len(positions), 5, 5, 1), np.float32)
    images[:, 2, 2] = 1.0

    moved = np.asarray(augmentation.shifted(key, positions, images, 2))

    rows = moved.reshape(len(positions), -1).argmax(axis=1) // 5
    assert all(set(rows[drawn == i]) == set(range(5)) for i in range(num))


def test_positions_that_are_not_integers_are_an_error():
    positions = jnp.array([0.2, 0.7])
    with pytest.raises(ValueError, match="positions must be integers, got float32"):
        rng.example_keys(rng.root_key(0), Stream.FLOW, positions)
    with pytest.raises(ValueError, match="positions must be integers, got float32"):
        augmentation.shifted(rng.root_key(0), positions, np.zeros((2, 4, 4, 1)), 1)

"""Replayed particles go on where the last step left them, on any number of devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_problem
from jax.sharding import AxisType, PartitionSpec

import fdrl_jax as fdrl
from fdrl_jax import parallel, replay, rng, steps
from fdrl_jax.parallel import AXIS

GLOBAL_BATCH = 4 * jax.local_device_count()
CONSTANTS = small_problem.CONSTANTS
PROBLEM = small_problem.problem(num_steps=8, replay_fraction=0.75)


def start():
    return small_problem.initial_state()._replace(particles=replay.none_yet(GLOBAL_BATCH, (2,)))


def step(batch_size=GLOBAL_BATCH, **options):
    return small_problem.train_step(PROBLEM, batch_size=batch_size, **options)


def three_steps(**options):
    return steps.repeat_steps(step(**options), 3)


@pytest.fixture(scope="module")
def on_one_device():
    return jax.jit(three_steps())(start(), CONSTANTS, None, 3)


def test_a_train_step_flows_the_share_of_steps_that_is_not_replayed_and_one_at_least():
    def num(fraction, num_steps=8):
        return small_problem.problem(num_steps=num_steps, replay_fraction=fraction).flow

    assert [num(f).num_train_steps for f in (0.0, 0.5, 0.75, 0.99)] == [8, 4, 2, 1]
    assert num(0.0, num_steps=0).num_train_steps == 0


def test_particles_go_on_from_where_they_are_or_start_anew_from_the_prior():
    num, fraction = 2_000, 0.7
    keys = rng.example_keys(jax.random.key(0), rng.Stream.REPLAY, jnp.arange(num))
    particles, x0 = jnp.ones((num, 2, 3)), jnp.zeros((num, 2, 3))

    starts = replay.restart(keys, particles, x0, fraction)

    assert all(len(np.unique(one)) == 1 for one in starts)
    assert np.mean(starts) == pytest.approx(fraction, abs=5 * np.sqrt(0.21 / num))
    np.testing.assert_array_equal(replay.restart(keys, particles, x0, 0.0), x0)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_particle_that_is_not_finite_starts_anew(value):
    keys = jax.random.split(jax.random.key(0), 2)
    particles = jnp.array([[1.0, 1.0], [1.0, value]])

    starts = replay.restart(keys, particles, jnp.zeros((2, 2)), 1.0)

    np.testing.assert_array_equal(starts, [[1.0, 1.0], [0.0, 0.0]])


def test_the_first_step_flows_all_particles_from_the_prior_and_the_second_most_from_there():
    run = jax.jit(step())
    first, _ = run(start(), CONSTANTS, None)
    second, _ = run(first, CONSTANTS, None)

    root = jax.random.key(3)
    keys = rng.example_keys(root, rng.Stream.PRIOR, jnp.arange(GLOBAL_BATCH))
    x0 = PROBLEM.prior_sample(CONSTANTS.prior, keys, {})
    flowed = fdrl.flow(
        rng.example_keys(root, rng.Stream.FLOW, jnp.arange(GLOBAL_BATCH)),
        x0,
        PROBLEM.potential(start().variables),
        num_steps=2,
        step_size=0.1,
        noise_scale=0.2,
    )
    np.testing.assert_allclose(first.particles, flowed, rtol=1e-5, atol=1e-6)
    # Two steps of the flow move less than a new draw of the prior does.
    near = np.linalg.norm(second.particles - first.particles, axis=-1) < 1.0
    assert 0.5 < near.mean() < 1.0


def test_replicas_and_micro_batches_compute_what_one_device_computes(on_one_device):
    per_replica = three_steps(batch_size=4, axis_name=AXIS, num_micro_batches=2)
    state, metrics = parallel.map_steps(per_replica)(
        parallel.replicate(start()), parallel.replicate(CONSTANTS), None, 3
    )

    assert parallel.odd_replicas(state) == []
    one = parallel.unreplicate((state, metrics))
    chex.assert_trees_all_close(one, on_one_device, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_same_steps_under_shard_map_give_the_same_numbers(check_vma, on_one_device):
    mapped = jax.shard_map(
        lambda state, constants: three_steps(batch_size=4, axis_name=AXIS)(
            state, constants, None, 3
        ),
        mesh=jax.make_mesh((jax.local_device_count(),), (AXIS,), axis_types=(AxisType.Auto,)),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )

    actual = jax.jit(mapped)(start(), CONSTANTS)

    chex.assert_trees_all_close(actual, on_one_device, rtol=1e-4, atol=1e-6)


def test_a_state_without_particles_has_none_after_a_step_without_replay():
    after, _ = jax.jit(small_problem.train_step())(small_problem.initial_state(), CONSTANTS, None)

    assert after.particles == ()

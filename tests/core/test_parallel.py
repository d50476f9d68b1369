"""Devices: many replicas compute what one device computes with the same global batch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_problem
from jax.sharding import AxisType, PartitionSpec

import fdrl_jax as fdrl
from fdrl_jax.training import parallel, samplers, steps
from fdrl_jax.training.parallel import AXIS

NUM_DEVICES = jax.local_device_count()
GLOBAL_BATCH = 4 * NUM_DEVICES
CONSTANTS, KEY = small_problem.CONSTANTS, small_problem.KEY

# A GPU machine may have one device; the CPU always has the fake ones of conftest.py.
pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" and NUM_DEVICES == 1, reason="needs several devices"
)


def per_replica():
    """Up to three steps of one replica."""
    step = small_problem.train_step(batch_size=GLOBAL_BATCH // NUM_DEVICES, axis_name=AXIS)
    return steps.repeat_steps(step, 3)


@functools.cache
def on_one_device():
    step = steps.repeat_steps(small_problem.train_step(batch_size=GLOBAL_BATCH), 3)
    return jax.jit(step)(KEY, small_problem.initial_state(), CONSTANTS, None, 3)


def mapped_over_devices(function, in_specs, out_specs, check_vma=True):
    mesh = jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
    specs = {"in_specs": in_specs, "out_specs": out_specs, "check_vma": check_vma}
    return jax.jit(jax.shard_map(function, mesh=mesh, **specs))


def test_steps_on_all_devices_are_those_on_one_and_replicas_are_equal_bit_for_bit():
    start, constants = map(parallel.replicate, (small_problem.initial_state(), CONSTANTS))
    found = parallel.map_steps(per_replica())(KEY, start, constants, None, 3)
    chex.assert_trees_all_close(parallel.unreplicate(found), on_one_device(), rtol=1e-4, atol=1e-6)
    for leaf in jax.tree.leaves(found):
        assert len(leaf) == NUM_DEVICES > 1
        for replica in np.asarray(leaf)[1:]:
            np.testing.assert_array_equal(replica, leaf[0])


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_same_steps_under_shard_map_give_the_same_numbers(check_vma):
    # With check_vma (the default), shard_map sums the gradient of arrays that replicas share.
    def run(start, constants):
        return per_replica()(KEY, start, constants, None, 3)

    mapped = mapped_over_devices(run, PartitionSpec(), PartitionSpec(), check_vma)
    found = mapped(small_problem.initial_state(), CONSTANTS)
    chex.assert_trees_all_close(found, on_one_device(), rtol=1e-4, atol=1e-6)


def square(x):
    return jnp.sum(x**2, axis=-1)


SHARED = jnp.ones((1, 2))
HYPER = {"num_steps": 2, "step_size": 0.1, "noise_scale": 0.3}


def loss_and_speed(key, weight, penalty, x0=SHARED):
    method = fdrl.FDRL(**HYPER, gradient_penalty=penalty)
    _, record = method.objective(key, lambda x: weight * square(x), real=SHARED, x0=x0)
    return jnp.stack([record.metrics["loss"], record.metrics["drift_norm"]])[None]


@pytest.mark.parametrize(
    "function",
    [
        lambda key, i: fdrl.drift(SHARED, lambda x: i * square(x)),
        lambda key, i: fdrl.flow(KEY, SHARED, lambda x: i * square(x), **HYPER),
        lambda key, i: fdrl.flow(key, SHARED, square, **HYPER),
        lambda key, i: fdrl.flow(KEY, SHARED, square, **{**HYPER, "step_size": 0.1 * i}),
        lambda key, i: loss_and_speed(key, 1.0, 0.0),
        lambda key, i: loss_and_speed(KEY, i, 1.0),
        lambda key, i: loss_and_speed(key, 1.0, 1.0, x0=i * SHARED),
    ],
)
def test_points_that_devices_share_move_as_each_device_says(function):
    keys, split = jax.random.split(KEY, NUM_DEVICES), PartitionSpec(AXIS)
    numbers = jnp.arange(float(NUM_DEVICES))

    def on_devices(check_vma):
        own = lambda keys, numbers: function(keys[0], numbers[0])  # noqa: E731
        return mapped_over_devices(own, split, split, check_vma)(keys, numbers)

    expected = on_devices(check_vma=False)
    assert np.any(expected[0] != expected[1])
    chex.assert_trees_all_close(on_devices(check_vma=True), expected, rtol=1e-5, atol=1e-6)


def test_samples_on_all_devices_are_those_on_one():
    sampler = samplers.make_sampler(small_problem.problem())
    variables, batch = small_problem.initial_variables(), {"position": np.arange(GLOBAL_BATCH)}
    replicated = map(parallel.replicate, (variables, CONSTANTS))
    spread = parallel.map_sampler(sampler)(KEY, *replicated, parallel.shard(batch))
    expected = jax.jit(sampler)(KEY, variables, CONSTANTS, batch)
    chex.assert_trees_all_close(parallel.gather(spread), expected, rtol=1e-5, atol=1e-6)


def test_gather_undoes_shard_and_unreplicate_undoes_replicate():
    tree = {"x": np.arange(6 * NUM_DEVICES).reshape(-1, 3), "y": np.arange(2 * NUM_DEVICES)}
    sharded = parallel.shard(tree)
    assert sharded["x"].shape == (NUM_DEVICES, 2, 3)
    np.testing.assert_array_equal(sharded["y"][0], [0, 1])
    chex.assert_trees_all_equal(parallel.gather(sharded), tree)
    replicated = parallel.replicate(tree)
    assert len(replicated["x"].sharding.device_set) == NUM_DEVICES
    one = parallel.unreplicate(replicated)
    chex.assert_trees_all_equal(one, tree)
    assert len(one["x"].sharding.device_set) == 1
    with pytest.raises(ValueError, match=f"{NUM_DEVICES + 1} examples do not divide over"):
        parallel.shard({"x": np.zeros((NUM_DEVICES + 1, 2))})

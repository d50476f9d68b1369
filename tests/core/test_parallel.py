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
from fdrl_jax import priors
from fdrl_jax.training import adversarial, parallel, rng, samplers, steps
from fdrl_jax.training.parallel import AXIS

NUM_DEVICES = jax.local_device_count()
GLOBAL_BATCH = 4 * NUM_DEVICES
CONSTANTS, KEY = small_problem.CONSTANTS, small_problem.KEY

# A GPU machine may have one device; the CPU always has the fake ones of conftest.py.
pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" and NUM_DEVICES == 1, reason="needs several devices"
)


def per_replica(num_micro_batches=1):
    """Up to three steps of one replica."""
    step = small_problem.train_step(
        batch_size=GLOBAL_BATCH // NUM_DEVICES,
        axis_name=AXIS,
        num_micro_batches=num_micro_batches,
    )
    return steps.repeat_steps(step, 3)


@functools.cache
def on_one_device():
    step = steps.repeat_steps(small_problem.train_step(batch_size=GLOBAL_BATCH), 3)
    return jax.jit(step)(KEY, small_problem.initial_state(), CONSTANTS, None, 3)


@functools.cache
def on_all_devices():
    return parallel.map_steps(per_replica())(
        KEY,
        parallel.replicate(small_problem.initial_state()),
        parallel.replicate(CONSTANTS),
        None,
        3,
        0,
    )


def test_there_are_several_devices():
    assert parallel.num_devices() == NUM_DEVICES > 1


def test_steps_on_all_devices_are_the_steps_on_one_with_the_same_global_batch():
    chex.assert_trees_all_close(
        parallel.unreplicate(on_all_devices()), on_one_device(), rtol=1e-4, atol=1e-6
    )


def test_replicas_are_equal_bit_for_bit():
    state, metrics = on_all_devices()

    for leaf in jax.tree.leaves((state, metrics)):
        assert len(leaf) == NUM_DEVICES
        for replica in np.asarray(leaf)[1:]:
            np.testing.assert_array_equal(replica, leaf[0])


def test_steps_lowered_for_given_devices_are_the_mapped_ones():
    state, constants = small_problem.initial_state(), CONSTANTS
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.eval_shape(lambda: (KEY, state, constants, None))

    lowered = parallel.lower_steps(per_replica(), jax.devices(), (*shapes, scalar, scalar))

    replicated = parallel.replicate((state, constants))
    count, offset = jnp.int32(3), jnp.int32(0)
    mesh = jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))
    shared = jax.sharding.NamedSharding(mesh, PartitionSpec())
    key, count, offset = jax.device_put((KEY, count, offset), shared)
    actual = lowered.compile()(key, *replicated, None, count, offset)
    chex.assert_trees_all_equal(
        parallel.unreplicate(actual), parallel.unreplicate(on_all_devices())
    )


@pytest.mark.parametrize(("check_vma", "num_micro_batches"), [(True, 1), (True, 2), (False, 1)])
def test_the_same_steps_under_jit_of_shard_map_give_the_same_numbers(check_vma, num_micro_batches):
    # With check_vma (the default), shard_map sums the gradient of arrays that replicas share.
    mapped = jax.shard_map(
        lambda state, constants: per_replica(num_micro_batches)(KEY, state, constants, None, 3),
        mesh=jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,)),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )

    actual = jax.jit(mapped)(small_problem.initial_state(), CONSTANTS)

    chex.assert_trees_all_close(actual, on_one_device(), rtol=1e-4, atol=1e-6)


def square(x):
    return jnp.sum(x**2, axis=-1)


def logits(x):
    return jnp.stack([x[:, 0], x[:, 1]], axis=-1)


SHARED = jnp.ones((1, 2))
HYPER = {"num_steps": 2, "step_size": 0.1, "noise_scale": 0.3}


def loss_and_penalty(key, weight, gradient_penalty, x0=SHARED):
    _, metrics = fdrl.objective(
        key, SHARED, x0, lambda x: weight * square(x), gradient_penalty=gradient_penalty, **HYPER
    )
    return jnp.stack([metrics["loss"], metrics["drift_norm"]])[None]


@pytest.mark.parametrize(
    "function",
    [
        lambda key, i: fdrl.drift(SHARED, lambda x: i * square(x)),
        lambda key, i: fdrl.langevin_step(
            KEY, SHARED, lambda x: i * square(x), step_size=0.1, noise_scale=0.3
        ),
        lambda key, i: fdrl.flow(KEY, SHARED, lambda x: i * square(x), **HYPER),
        lambda key, i: fdrl.flow(key, SHARED, square, **HYPER),
        lambda key, i: fdrl.flow(KEY, SHARED, square, **{**HYPER, "step_size": 0.1 * i}),
        lambda key, i: fdrl.two_stage(key, SHARED, square, num_refine_steps=1, **HYPER).refined,
        lambda key, i: adversarial.perturb(
            logits, SHARED, jnp.int32(i)[None] % 2, adversarial.l2_attack(0.5, 3)
        ),
        lambda key, i: loss_and_penalty(key, 1.0, 0.0),
        lambda key, i: loss_and_penalty(KEY, i, 0.0),
        lambda key, i: loss_and_penalty(KEY, i, 1.0),
        lambda key, i: loss_and_penalty(key, 1.0, 1.0, x0=i * SHARED),
    ],
)
def test_points_that_devices_share_move_as_each_device_says(function):
    # With check_vma (the default), shard_map sums the gradient by points that replicas share.
    keys, split = jax.random.split(KEY, NUM_DEVICES), PartitionSpec(AXIS)

    def on_devices(check_vma):
        mapped = jax.shard_map(
            lambda keys, numbers: function(keys[0], numbers[0]),
            mesh=jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,)),
            in_specs=split,
            out_specs=split,
            check_vma=check_vma,
        )
        return jax.jit(mapped)(keys, jnp.arange(float(NUM_DEVICES)))

    expected = on_devices(check_vma=False)
    assert np.any(expected[0] != expected[1])
    chex.assert_trees_all_close(on_devices(check_vma=True), expected, rtol=1e-5, atol=1e-6)


def test_points_that_devices_share_stay_shared_where_nothing_differs():
    mapped = jax.shard_map(
        lambda x: fdrl.flow(KEY, x, square, **HYPER),
        mesh=jax.make_mesh((NUM_DEVICES,), (AXIS,), axis_types=(AxisType.Auto,)),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    expected = fdrl.flow(KEY, SHARED, square, **HYPER)
    chex.assert_trees_all_close(jax.jit(mapped)(SHARED), expected, rtol=1e-6)


def test_the_same_steps_under_vmap_give_the_same_numbers():
    mapped = jax.vmap(
        lambda _: per_replica()(KEY, small_problem.initial_state(), CONSTANTS, None, 3),
        axis_name=AXIS,
    )

    actual = jax.jit(mapped)(jnp.arange(NUM_DEVICES))

    first = jax.tree.map(lambda a: a[0], actual)
    chex.assert_trees_all_close(first, on_one_device(), rtol=1e-4, atol=1e-6)


def test_samples_on_all_devices_are_those_on_one():
    sampler = samplers.make_sampler(small_problem.problem())
    variables, batch = small_problem.initial_variables(), {"position": np.arange(GLOBAL_BATCH)}

    spread = parallel.map_sampler(sampler)(
        KEY, parallel.replicate(variables), parallel.replicate(CONSTANTS), parallel.shard(batch)
    )

    expected = jax.jit(sampler)(KEY, variables, CONSTANTS, batch)
    chex.assert_trees_all_close(parallel.gather(spread), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "remainder_scale", [0.0, 0.5, np.linspace(0, 1, 3 * NUM_DEVICES).reshape(-1, 3)]
)
def test_a_factor_distributed_over_the_devices_gives_the_samples_of_the_whole_one(remainder_scale):
    generator = np.random.default_rng(0)
    mean, factor = (
        generator.normal(size=(NUM_DEVICES, 3)),
        generator.normal(size=(NUM_DEVICES * 3, 7)),
    )
    prior = priors.gaussian(
        mean, factor, remainder_scale=remainder_scale, clip=None, axis_name=AXIS
    )
    keys = rng.example_keys(KEY, rng.Stream.PRIOR, np.arange(GLOBAL_BATCH))
    whole = prior.sample(prior.params, keys, {})

    distributed = parallel.distribute(prior.params["factor"])
    params = {**parallel.replicate(prior.params), "factor": distributed}
    parts = jax.pmap(lambda params, keys: prior.sample(params, keys, {}), axis_name=AXIS)(
        params, parallel.shard(keys)
    )

    assert distributed.shape == (NUM_DEVICES, 3, 7)
    assert isinstance(prior.params["factor"], np.ndarray)
    np.testing.assert_allclose(parallel.gather(parts), whole, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_divide_over_the_devices_cannot_be_distributed():
    with pytest.raises(ValueError, match=f"{NUM_DEVICES + 1} rows do not divide over"):
        parallel.distribute(np.zeros((NUM_DEVICES + 1, 2)))


def test_gather_undoes_shard_and_keeps_the_order():
    tree = {"x": np.arange(6 * NUM_DEVICES).reshape(-1, 3), "y": np.arange(2 * NUM_DEVICES)}

    sharded = parallel.shard(tree)

    assert sharded["x"].shape == (NUM_DEVICES, 2, 3)
    np.testing.assert_array_equal(sharded["y"][0], [0, 1])
    chex.assert_trees_all_equal(parallel.gather(sharded), tree)


def test_unreplicate_undoes_replicate():
    tree = {"x": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(5)}

    replicated = parallel.replicate(tree)

    assert replicated["x"].shape == (NUM_DEVICES, 2, 3)
    assert len(replicated["x"].sharding.device_set) == NUM_DEVICES
    one = parallel.unreplicate(replicated)
    chex.assert_trees_all_equal(one, tree)
    assert len(one["x"].sharding.device_set) == 1


def test_the_first_device_does_not_store_the_copies_of_others(monkeypatch):
    held, put, first = [], jax.device_put, jax.local_devices()[0]

    def recorded(x, device=None, **options):
        shards = [s for a in jax.live_arrays() for s in a.addressable_shards if s.device == first]
        large = [s.data for s in shards if s.data.nbytes >= size]
        held.append(sum({a.unsafe_buffer_pointer(): a.nbytes for a in large}.values()))
        return put(x, device, **options)

    size = 4 * 2_500_000  # Larger than all arrays of other tests.
    tree = jnp.ones(2_500_000)
    monkeypatch.setattr(jax, "device_put", recorded)
    replicated = parallel.replicate(tree)

    assert [s.data.nbytes for s in replicated.addressable_shards if s.device == first] == [size]
    # The array itself and its copy.
    assert max(held) <= 2 * size


@pytest.mark.parametrize(("first", "flags"), [(True, (True, False)), (False, (False, True))])
def test_the_first_process_decides_what_processes_see_differently(first, flags, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shared = []  # What each process contributes.
    monkeypatch.setattr(parallel, "any_process", lambda own: shared.append(own) or own)
    for index, flag in enumerate(flags):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parallel.first_process_says(flag)
    assert any(shared) == first


def differing(array, other, replica=1):
    """Replicas of an array, with another array on one device."""
    arrays = [other if i == replica else array for i in range(NUM_DEVICES)]
    return jax.pmap(lambda i: jnp.stack(arrays)[i])(jnp.arange(NUM_DEVICES))


@pytest.mark.skipif(NUM_DEVICES < 3, reason="needs a majority")
@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_replica_that_differs_in_one_number_of_any_type_is_found(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        array = jnp.zeros((2, 2), dtype)
        changed = array.at[1, 0].set(jnp.ones((), dtype))
        tree = {"a": differing(array, changed), "b": differing(array, array)}

        assert parallel.divergent_replicas(tree) == [1]
        assert parallel.divergent_replicas({"b": tree["b"]}) == []


def test_sharding_examples_that_do_not_divide_over_the_devices_is_an_error():
    num = NUM_DEVICES + 1

    with pytest.raises(ValueError, match=f"{num} examples do not divide over {NUM_DEVICES}"):
        parallel.shard({"x": np.zeros((num, 2))})


def test_the_local_batch_is_the_global_batch_divided_by_the_devices():
    assert parallel.local_batch_size(3 * NUM_DEVICES) == 3


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (NUM_DEVICES + 1, f"{NUM_DEVICES}, {2 * NUM_DEVICES}"),
        (NUM_DEVICES - 1, f"{NUM_DEVICES}"),
    ],
)
def test_a_global_batch_that_does_not_divide_is_an_error_with_the_nearest_that_do(size, nearest):
    with pytest.raises(ValueError, match=f"batch of {size} does not divide .* do: {nearest}$"):
        parallel.local_batch_size(size)

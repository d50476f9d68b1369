"""The flow as a function: its keys, segments, types, transformations and cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import fdrl_jax as fdrl

KEY = jax.random.key(7)
EXAMPLE_KEYS = jax.random.split(KEY, 8)
START = jax.random.normal(jax.random.key(0), (8, 2))
HYPER = {"step_size": 0.1, "noise_scale": 0.3}

each_kind_of_key = pytest.mark.parametrize(
    "key", [KEY, EXAMPLE_KEYS], ids=["one_key", "a_key_an_example"]
)


def potential(x):
    return jnp.sum(jnp.cos(x) + 0.5 * x**2, axis=-1)


def positions(x, drift):
    return x


def points_and_drifts(x, drift):
    return {"x": x, "drift": drift}


@functools.cache
def compiled(num_steps, **options):
    @jax.jit
    def run(key, x0, first_step):
        return fdrl.flow(
            key, x0, potential, num_steps=num_steps, first_step=first_step, **HYPER, **options
        )

    return run


def flow(key, x0, num_steps=5, first_step=0, **options):
    """The flow of these tests, compiled once for each of its static arguments."""
    return compiled(num_steps, **options)(key, x0, first_step)


def noise_of_step(key, k):
    options = {"num_steps": 1, "first_step": k, "step_size": 0.0, "noise_scale": 1.0}
    return fdrl.flow(key, 0.0 * START, lambda x: 0.0 * x[:, 0], **options)


def drawn_before(key):
    """What a program may have drawn before the flow: by the key, its parts, or a number."""
    yield from (key, *jax.random.split(key, 3), jax.random.fold_in(key, 3))


def plain_flow(key, x0, num_steps=5):
    return fdrl.flow(key, x0, potential, num_steps=num_steps, **HYPER)


@each_kind_of_key
def test_a_flow_split_in_two_equals_the_whole_flow_bit_for_bit(key):
    whole, half = flow(key, START, 7), flow(key, START, 3)

    np.testing.assert_array_equal(flow(key, half, 4, first_step=3), whole)
    assert np.all(flow(key, half, 4) != whole)


@each_kind_of_key
def test_the_trajectory_goes_from_the_start_to_the_end_by_langevin_steps(key):
    end, seen = flow(key, START, 4, observe=points_and_drifts)

    path = seen["x"]
    assert path.shape == (4, 8, 2)
    np.testing.assert_array_equal(path[0], START)
    path = [*path, end]
    np.testing.assert_array_equal(end, flow(key, START, 4))
    for k in range(4):
        drift = fdrl.drift(path[k], potential)
        step = path[k] + 0.1 * drift + 0.3 * noise_of_step(key, k)
        np.testing.assert_allclose(path[k + 1], step, atol=1e-6)
        np.testing.assert_allclose(seen["drift"][k], drift, rtol=1e-5)


def test_the_noise_of_a_flow_is_never_its_start():
    noise = [noise_of_step(KEY, k) for k in range(4)]
    for other in drawn_before(KEY):
        start = jax.random.normal(other, START.shape)
        assert min(float(jnp.max(jnp.abs(start - xi))) for xi in noise) > 0.1


@pytest.mark.parametrize("num", [0, 3])
@each_kind_of_key
def test_two_stages_are_the_flow_of_k_and_of_k_plus_kappa_steps(key, num):
    stages = fdrl.two_stage(key, START, potential, num_steps=4, num_refine_steps=num, **HYPER)

    np.testing.assert_array_equal(stages.prior, START)
    np.testing.assert_array_equal(stages.bridged, flow(key, START, 4))
    np.testing.assert_array_equal(stages.refined, flow(key, START, 4 + num))


def test_with_a_key_per_example_a_path_depends_only_on_its_own_key_and_start():
    whole = flow(EXAMPLE_KEYS, START)

    np.testing.assert_array_equal(flow(EXAMPLE_KEYS[:3], START[:3]), whole[:3])
    np.testing.assert_array_equal(flow(EXAMPLE_KEYS[::-1], START[::-1]), whole[::-1])


def test_raw_keys_of_prngkey_work_like_typed_keys():
    raw = jax.random.PRNGKey(7)

    np.testing.assert_array_equal(plain_flow(raw, START), plain_flow(KEY, START))
    np.testing.assert_array_equal(
        fdrl.langevin_step(raw, START, potential, **HYPER),
        fdrl.langevin_step(KEY, START, potential, **HYPER),
    )


def vmapped(keys, x0):
    return jax.vmap(lambda key, x: plain_flow(key, x[None])[0])(keys, x0)


def pmapped(keys, x0):
    num = jax.device_count()
    mapped = jax.pmap(plain_flow)(keys.reshape(num, -1), x0.reshape(num, -1, 2))
    return mapped.reshape(x0.shape)


def shard_mapped(keys, x0):
    num = jax.device_count()
    mesh = jax.make_mesh((num,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("i")
    return jax.jit(jax.shard_map(plain_flow, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(
        keys, x0
    )


@pytest.mark.parametrize("transformed", [flow, vmapped, pmapped, shard_mapped])
def test_the_flow_is_the_same_under_jit_vmap_pmap_and_shard_map(transformed):
    np.testing.assert_allclose(
        transformed(EXAMPLE_KEYS, START), plain_flow(EXAMPLE_KEYS, START), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("observe", [None, positions])
def test_the_potential_is_traced_once_whatever_the_number_of_steps(observe):
    traces = []

    def counted(x):
        traces.append(x.shape)
        return potential(x)

    for num_steps in (2, 50):
        run = jax.jit(
            functools.partial(fdrl.flow, num_steps=num_steps, observe=observe, **HYPER),
            static_argnums=2,
        )
        run(KEY, START, counted)
        run(KEY, START + 1.0, counted)
        assert traces == [START.shape]
        traces.clear()


def test_one_compiled_flow_works_for_all_step_sizes_and_noise_scales():
    traces = []

    @jax.jit
    def run(step_size, noise_scale):
        traces.append(step_size)
        return fdrl.flow(
            KEY, START, potential, num_steps=5, step_size=step_size, noise_scale=noise_scale
        )

    for hyper in ((0.1, 0.3), (0.2, 0.0)):
        expected = fdrl.flow(
            KEY, START, potential, num_steps=5, step_size=hyper[0], noise_scale=hyper[1]
        )
        np.testing.assert_allclose(run(*hyper), expected, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def temporary_bytes(num_steps, **options):
    x0 = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    memory = compiled(num_steps, **options).lower(KEY, x0, 0).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_memory_grows_with_the_number_of_steps_only_for_a_trajectory():
    size = 64 * 32 * 4

    few, many = temporary_bytes(10), temporary_bytes(1_000)
    path_few = temporary_bytes(10, observe=positions)
    path_many = temporary_bytes(1_000, observe=positions)

    # The counter of steps is an array of 4 bytes per step.
    assert 0 < few <= many <= few + 4 * 1_000
    assert path_many - path_few >= 990 * size


def test_a_flow_of_zero_steps_returns_its_start():
    np.testing.assert_array_equal(flow(KEY, START, 0), START)

    end, path = flow(KEY, START, 0, observe=positions)
    np.testing.assert_array_equal(end, START)
    assert path.shape == (0, 8, 2)


def test_a_negative_number_of_steps_is_an_error():
    with pytest.raises(ValueError, match="num_steps must be a whole number >= 0, got -1"):
        flow(KEY, START, -1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_start_in_half_precision_is_converted_to_float32_so_that_small_steps_move_it(dtype):
    end = fdrl.flow(
        KEY,
        jnp.ones((1, 1), dtype),
        lambda x: -x[:, 0],
        num_steps=100,
        step_size=1e-3,
        noise_scale=0.0,
    )

    assert end.dtype == jnp.float32
    np.testing.assert_allclose(end, 1.1, rtol=1e-5)


@pytest.mark.parametrize(
    "x0",
    [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], np.uint8), np.full((2, 2), 3_000_000_000)],
)
def test_an_integer_start_is_converted_to_float32(x0):
    end = plain_flow(KEY, x0)

    assert end.dtype == jnp.float32
    np.testing.assert_array_equal(end, plain_flow(KEY, np.float32(x0)))


@pytest.mark.parametrize("x", [[[1, 2], [3, 4]], np.array([[1.0, 2.0], [3.0, 4.0]])])
def test_single_steps_drifts_and_stages_accept_the_inputs_of_the_flow(x):
    as_float32 = jnp.float32(x)

    step = fdrl.langevin_step(KEY, x, potential, **HYPER)
    stages = fdrl.two_stage(KEY, x, potential, num_steps=1, num_refine_steps=0, **HYPER)

    expected = fdrl.langevin_step(KEY, as_float32, potential, **HYPER)
    np.testing.assert_array_equal(step, expected)
    np.testing.assert_array_equal(fdrl.drift(x, potential), fdrl.drift(as_float32, potential))
    np.testing.assert_array_equal(stages.prior, as_float32)
    assert step.dtype == stages.prior.dtype == jnp.float32


@pytest.mark.parametrize(("num_keys", "num_examples"), [(1, 8), (8, 1), (3, 8)])
def test_neither_one_key_nor_one_per_example_is_an_error(num_keys, num_examples):
    with pytest.raises(ValueError, match=f"got {num_keys} for {num_examples}"):
        plain_flow(EXAMPLE_KEYS[:num_keys], START[:num_examples])


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4, 3)])
@pytest.mark.parametrize("one_key", [True, False], ids=["one_key", "a_key_an_example"])
def test_examples_may_be_scalars_or_images_as_well_as_points(shape, one_key):
    key = KEY if one_key else EXAMPLE_KEYS[: shape[0]]

    def of_shape(x):
        return jnp.sum(jnp.square(x).reshape(len(x), -1), axis=-1)

    end = fdrl.flow(key, jnp.ones(shape), of_shape, num_steps=3, **HYPER)

    assert end.shape == shape
    assert len(np.unique(end)) == end.size


def test_unrolling_the_loop_changes_only_its_speed():
    np.testing.assert_allclose(
        flow(KEY, START, 7, unroll=3), flow(KEY, START, 7), rtol=1e-5, atol=1e-6
    )


def test_the_drift_of_an_example_comes_from_its_own_potential():
    alone = jnp.stack([-jax.grad(lambda x: potential(x[None])[0])(x) for x in START])

    np.testing.assert_allclose(fdrl.drift(START, potential), alone, rtol=1e-6)


def scheduled(key, x0, num_steps, first_step=0):
    return fdrl.flow(
        key,
        x0,
        potential,
        num_steps=num_steps,
        step_size=lambda k: 0.1 / (k + 1),
        noise_scale=lambda k: 0.3 * (k + 1),
        first_step=first_step,
    )


@each_kind_of_key
def test_schedules_give_each_step_its_step_size_and_noise_wherever_the_flow_is_split(key):
    x = START
    for k in range(3):
        noise = 0.3 * (k + 1) * noise_of_step(key, k)
        x = x + 0.1 / (k + 1) * fdrl.drift(x, potential) + noise

    np.testing.assert_allclose(scheduled(key, START, 3), x, atol=1e-6)
    cut = scheduled(key, scheduled(key, START, 2), 1, first_step=2)
    np.testing.assert_allclose(cut, x, atol=1e-6)


@each_kind_of_key
def test_no_noise_is_drawn_for_a_noise_scale_of_zero(key):
    def program(noise_scale):
        hyper = {"num_steps": 3, "step_size": 0.1, "noise_scale": noise_scale}
        return str(jax.make_jaxpr(lambda x: fdrl.flow(key, x, potential, **hyper))(START))

    assert "random_bits" in program(0.1)
    assert "random_bits" not in program(0.0) + program(0)

"""The flow: closed forms, keys, segments, types, transformations and cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import fdrl_jax as fdrl

KEY = jax.random.key(7)
EXAMPLE_KEYS = jax.random.split(KEY, 8)
START = jax.random.normal(jax.random.key(0), (8, 2))
HYPER = {"step_size": 0.1, "noise_scale": 0.3}
SIGMAS = 5.0  # Allowed sampling error, in standard deviations.

each_kind_of_key = pytest.mark.parametrize(
    "key", [KEY, EXAMPLE_KEYS], ids=["one_key", "a_key_per_example"]
)


def potential(x):
    return jnp.sum(jnp.cos(x) + 0.5 * x**2, axis=-1)


def flat(x):
    return 0.0 * jnp.sum(x, axis=-1)


def positions(x, drift):
    return x


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


def plain_flow(key, x0, num_steps=5):
    return fdrl.flow(key, x0, potential, num_steps=num_steps, **HYPER)


def noise_of_step(key, k):
    options = {"num_steps": 1, "first_step": k, "step_size": 0.0, "noise_scale": 1.0}
    return fdrl.flow(key, 0.0 * START, flat, **options)


# Mathematics


def test_a_quadratic_potential_gives_the_mean_and_variance_of_the_ornstein_uhlenbeck_process():
    num, curvature, step_size, noise_scale = 20_000, 2.0, 0.05, 0.3
    start = 1.0 + 0.5 * jax.random.normal(jax.random.key(0), (num, 1))
    _, path = fdrl.flow(
        jax.random.split(jax.random.key(1), num),
        start,
        lambda x: 0.5 * curvature * jnp.sum(x**2, axis=-1),
        num_steps=31,
        step_size=step_size,
        noise_scale=noise_scale,
        observe=positions,
    )
    # x' = c x + nu xi: a geometric series.
    c = 1.0 - step_size * curvature
    for k in (1, 10, 30):
        x = np.asarray(path[k])
        variance = c ** (2 * k) * 0.25 + noise_scale**2 * (1.0 - c ** (2 * k)) / (1.0 - c**2)
        assert x.mean() == pytest.approx(c**k, abs=SIGMAS * np.sqrt(variance / num))
        assert x.var() == pytest.approx(variance, rel=SIGMAS * np.sqrt(2.0 / num))


def test_noise_is_standard_normal_and_independent_over_steps_and_examples():
    options = {"num_steps": 6, "step_size": 1.0, "noise_scale": 0.2, "observe": positions}
    _, path = fdrl.flow(KEY, jnp.zeros((4_000, 2)), flat, **options)
    noise = np.diff(np.asarray(path), axis=0) / 0.2  # [steps, examples, coordinates]
    columns = np.moveaxis(noise, 1, 0).reshape(4_000, -1)
    assert noise.mean() == pytest.approx(0.0, abs=SIGMAS / np.sqrt(noise.size))
    assert noise.var() == pytest.approx(1.0, rel=SIGMAS * np.sqrt(2.0 / noise.size))
    # Between steps and coordinates, and between one example and the next.
    correlations = np.corrcoef(columns, rowvar=False) - np.eye(10)
    assert np.all(abs(correlations) < SIGMAS / np.sqrt(4_000))
    assert np.all(abs(np.mean(columns[1:] * columns[:-1], axis=0)) < SIGMAS / np.sqrt(4_000))


def test_the_noise_of_a_flow_is_never_its_start():
    noise = [noise_of_step(KEY, k) for k in range(4)]
    for drawn_before in (KEY, *jax.random.split(KEY, 3), jax.random.fold_in(KEY, 3)):
        start = jax.random.normal(drawn_before, START.shape)
        assert min(float(jnp.max(jnp.abs(start - xi))) for xi in noise) > 0.1


def test_with_an_exact_ratio_training_comes_to_rest_at_tempered_data():
    # Lemma 1 in one dimension: p = N(0, 1.5), and all distributions are Gaussians with mean 0.
    prior_variance, data_variance, step_size, entropy_weight = 4.0, 1.5, 0.1, 0.3

    @jax.jit
    def flowed_variance(key, variance):
        start, noise = jax.random.split(key)
        x0 = jnp.sqrt(prior_variance) * jax.random.normal(start, (1_500, 1))
        curvature = 1.0 / data_variance - 1.0 / variance  # Of log r = log(q~ / p).
        x = fdrl.flow(
            noise,
            x0,
            lambda x: 0.5 * curvature * jnp.sum(x**2, axis=-1),
            num_steps=200,
            step_size=step_size,
            noise_scale=(2.0 * step_size * entropy_weight) ** 0.5,
        )
        return jnp.mean(x**2)

    variance = prior_variance
    for i in range(25):  # The estimator follows the flowed samples slowly, as in training.
        reached = min(float(flowed_variance(jax.random.key(i), variance)), 10.0)
        variance = variance**0.9 * reached**0.1
    # That of p^(1 / (1 + gamma)).
    assert variance == pytest.approx((1.0 + entropy_weight) * data_variance, rel=0.1)


def test_gradients_through_the_flow_are_the_closed_forms():
    curvature, step_size = jnp.array([0.5, 2.0]), 0.1

    def end(x0, curvature, step_size):
        options = {"num_steps": 12, "step_size": step_size, "noise_scale": 0.0}
        return fdrl.flow(KEY, x0, lambda x: 0.5 * jnp.sum(curvature * x**2, -1), **options)

    found = jax.grad(lambda *a: jnp.sum(end(*a)), argnums=(0, 1, 2))(START, curvature, step_size)
    # x_K = (1 - eta a)^K x_0.
    base = 1.0 - step_size * curvature
    slope = 12 * base**11
    np.testing.assert_allclose(found[0], jnp.broadcast_to(base**12, START.shape), rtol=1e-5)
    np.testing.assert_allclose(found[1], -step_size * slope * START.sum(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[2], -jnp.sum(curvature * slope * START), rtol=1e-4)


# Keys and segments


@each_kind_of_key
def test_a_flow_split_in_two_equals_the_whole_flow_bit_for_bit(key):
    whole, half = flow(key, START, 7), flow(key, START, 3)
    np.testing.assert_array_equal(flow(key, half, 4, first_step=3), whole)
    assert np.all(flow(key, half, 4) != whole)


@each_kind_of_key
def test_a_path_follows_drift_schedules_and_noise_step_by_step(key):
    schedules = {"step_size": lambda k: 0.1 / (k + 1), "noise_scale": lambda k: 0.3 * (k + 1)}
    observe = {"observe": lambda x, drift: {"x": x, "drift": drift}}
    end, seen = fdrl.flow(key, START, potential, num_steps=3, **schedules, **observe)
    x = START
    for k in range(3):
        np.testing.assert_allclose(seen["x"][k], x, atol=1e-6)
        drift = fdrl.drift(x, potential)
        np.testing.assert_allclose(seen["drift"][k], drift, rtol=1e-4, atol=1e-6)
        x = x + 0.1 / (k + 1) * drift + 0.3 * (k + 1) * noise_of_step(key, k)
    np.testing.assert_allclose(end, x, atol=1e-6)


def test_with_a_key_per_example_a_path_depends_only_on_its_own_key_and_start():
    whole = flow(EXAMPLE_KEYS, START)
    np.testing.assert_array_equal(flow(EXAMPLE_KEYS[:3], START[:3]), whole[:3])
    np.testing.assert_array_equal(flow(EXAMPLE_KEYS[::-1], START[::-1]), whole[::-1])


def test_the_flow_is_the_same_under_jit_and_vmap_and_for_raw_keys():
    expected = plain_flow(EXAMPLE_KEYS, START)
    of_one = jax.vmap(lambda key, x: plain_flow(key, x[None])[0])
    for found in (flow(EXAMPLE_KEYS, START), of_one(EXAMPLE_KEYS, START)):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    raw = plain_flow(jax.random.PRNGKey(7), START)
    np.testing.assert_array_equal(raw, plain_flow(KEY, START))
    rbg = plain_flow(jax.random.key(0, impl="rbg"), START)
    assert np.all(np.isfinite(rbg)), "one rbg key for the batch"


# Cost


def test_the_potential_is_traced_once_whatever_the_number_of_steps_and_the_scales():
    traces = []

    def counted(x):
        traces.append(x.shape)
        return potential(x)

    @functools.partial(jax.jit, static_argnames="num_steps")
    def run(step_size, num_steps):
        options = {"step_size": step_size, "noise_scale": 0.3, "observe": positions}
        return fdrl.flow(KEY, START, counted, num_steps=num_steps, **options)

    for num_steps in (2, 50):
        run(0.1, num_steps)
        run(0.2, num_steps)
        assert traces == [START.shape]
        traces.clear()


def test_memory_grows_with_the_number_of_steps_only_for_a_trajectory():
    def temporary_bytes(num_steps, **options):
        x0 = jax.ShapeDtypeStruct((64, 32), jnp.float32)
        memory = compiled(num_steps, **options).lower(KEY, x0, 0).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    few, many = temporary_bytes(10), temporary_bytes(1_000)
    paths = [temporary_bytes(num, observe=positions) for num in (10, 1_000)]
    # The counter of steps is an array of 4 bytes per step.
    assert 0 < few <= many <= few + 4 * 1_000
    assert paths[1] - paths[0] >= 990 * 64 * 32 * 4


@each_kind_of_key
def test_no_noise_is_drawn_for_a_noise_scale_of_zero(key):
    def program(noise_scale):
        hyper = {"num_steps": 3, "step_size": 0.1, "noise_scale": noise_scale}
        return str(jax.make_jaxpr(lambda x: fdrl.flow(key, x, potential, **hyper))(START))

    assert "random_bits" in program(0.1)
    assert "random_bits" not in program(0.0) + program(0)


def test_a_flow_along_pytrees_is_compiled_once_and_one_along_a_plain_function_follows_it():
    traces, slope = [], 1.0

    def apply(params, x):
        traces.append(x.shape)
        return x @ params

    class Linear(nnx.Module):
        def __init__(self):
            self.slope = nnx.Param(jnp.ones(2))

        def __call__(self, x):
            traces.append(x.shape)
            return x @ self.slope[...]

    def current(x):
        return slope * jnp.sum(x, -1)

    model, options = Linear(), {"num_steps": 3, **HYPER}
    ends = []
    for value in (1.0, 2.0):
        model.slope[...] = jnp.full(2, value)
        slope = value
        of_partial = fdrl.first_variation(
            Partial(apply, model.slope[...]), "alpha(0.5)", output="log_ratio"
        )
        of_model = fdrl.first_variation(model, "kl", output="log_ratio")
        fdrl.flow(KEY, START, of_partial, **options)
        plain = fdrl.flow(KEY, START, current, **options)
        ends.append(fdrl.flow(KEY, START, of_model, **options))
        np.testing.assert_allclose(ends[-1], plain, rtol=1e-5, atol=1e-6)
    assert traces == [(8, 2)] * 2
    np.testing.assert_allclose(ends[0] - ends[1], 0.3, rtol=1e-4)


# Types and misuse


def test_starts_of_other_types_are_converted_to_float32():
    wide, half = np.full((2, 2), 3_000_000_000), jnp.ones((2, 2), jnp.bfloat16)
    for x0 in ([[1, 2], [3, 4]], np.eye(2, dtype=np.uint8), wide, half, np.ones((2, 2))):
        end = plain_flow(KEY, x0)
        assert end.dtype == jnp.float32
        np.testing.assert_array_equal(end, plain_flow(KEY, np.float32(x0)))


def test_no_steps_return_the_start_and_a_point_may_have_a_scalar_potential():
    end, path = flow(KEY, START, 0, observe=positions)
    np.testing.assert_array_equal(end, START)
    assert path.shape == (0, 8, 2)
    np.testing.assert_allclose(fdrl.drift(START[0], lambda x: jnp.sum(x**2)), -2.0 * START[0])


def column(x):
    return jnp.sum(x**2, axis=-1, keepdims=True)


RBG_KEYS = jax.random.split(jax.random.key(0, impl="rbg"), 8)
MISUSE = {
    "column": ({"potential_fn": column}, r"got \(8, 1\); drop the last axis"),
    "negative steps": ({"num_steps": -1}, "num_steps must be a whole number >= 0, got -1"),
    "array of steps": ({"num_steps": jnp.int32(5)}, "num_steps must be a static Python int"),
    "negative step": ({"step_size": -0.1}, "step_size must be >= 0 and finite, got -0.1"),
    "negative noise": ({"noise_scale": jnp.float32(-1)}, "noise_scale must be >= 0 and finite"),
    "steps per example": ({"step_size": jnp.ones(8)}, r"step_size must be a scalar, .* \(8,\)"),
    "schedule": ({"noise_scale": lambda k: jnp.ones(8)}, "noise_scale must be a scalar"),
    "first step": ({"first_step": 0.5}, "first_step must be one whole number, got"),
    "keys": ({"key": EXAMPLE_KEYS[:3]}, "one key per example, got 3 for 8"),
    "keys without noise": ({"key": EXAMPLE_KEYS[:3], "noise_scale": 0}, "got 3 for 8"),
    "rbg keys": ({"key": RBG_KEYS}, "needs the generator 'threefry2x32', got 'rbg'"),
    "seed": ({"key": 0}, r"such as jax.random.key\(0\), got int 0"),
    "text": ({"x0": np.array([["a"]])}, "one array of real numbers, .* got <U1"),
    "no function": ({"potential_fn": 3.0}, "a potential is a function .* got <class 'float'>"),
    "no result": ({"potential_fn": lambda x: None}, r"one number per example, .* got None"),
    "dictionary": ({"x0": {"a": START}}, r"one array of real numbers, \[B, ...\], got dict"),
}


@pytest.mark.parametrize(("change", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(change, message):
    options = {"key": KEY, "x0": START, "potential_fn": potential, "num_steps": 1, **HYPER}
    with pytest.raises((ValueError, TypeError), match=message):
        fdrl.flow(**(options | change))

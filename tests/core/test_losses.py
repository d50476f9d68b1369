"""Bregman losses and f-divergences: one contract over every registered item."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdrl_jax as fdrl
from fdrl_jax import bregman, divergences
from fdrl_jax.divergences import alpha, get

RATIOS = np.geomspace(0.02, 50.0, 61).astype(np.float32)
ORDERS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
DIVERGENCES = [*divergences.REGISTRY.values(), *(alpha(order) for order in ORDERS)]
# d f'(e^l) / dl = r f''(r), by hand.
SLOPES = {
    "pearson": lambda r: 2.0 * r,
    "kl": lambda r: np.ones_like(r),
    "js": lambda r: 1.0 / (1.0 + r),
    "logd": lambda r: r / (1.0 + r),
    "reverse_kl": lambda r: 1.0 / r,
    "hellinger": lambda r: 0.5 / np.sqrt(r),
} | {f"alpha({a:g})": lambda r, a=a: r ** (a - 1.0) for a in ORDERS}
# The generators g of the losses.
GENERATORS = {
    "lsif": lambda y: 0.5 * (y - 1.0) ** 2,
    "lr": lambda y: y * jnp.log(y) - (1.0 + y) * jnp.log(1.0 + y),
    "ukl": lambda y: y * jnp.log(y) - y,
}

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
each_loss = pytest.mark.parametrize("loss", bregman.REGISTRY.values(), ids=lambda loss: loss.name)


@functools.cache
def derivative(function):
    return jax.jit(jax.vmap(jax.grad(function)))


def to_output(loss, ratio):
    """The output of an exact network."""
    return jnp.log(ratio) if loss.output == "log_ratio" else jnp.asarray(ratio)


# Divergences


@each_divergence
def test_the_generator_is_convex_zero_at_one_and_found_by_its_name(divergence):
    assert get(divergence) is divergence
    np.testing.assert_array_equal(get(divergence.name).f(RATIOS), divergence.f(RATIOS))
    a, b = np.meshgrid(RATIOS, RATIOS)
    chord = 0.5 * (divergence.f(a) + divergence.f(b))
    assert np.all(divergence.f(0.5 * (a + b)) <= chord + 1e-5 * (1.0 + abs(chord)))
    np.testing.assert_allclose(divergence.f(jnp.float32(1.0)), 0.0, atol=1e-6)
    second = derivative(jax.grad(divergence.f))(RATIOS) * RATIOS
    np.testing.assert_allclose(second, SLOPES[divergence.name](RATIOS), rtol=1e-3, atol=1e-5)


@each_divergence
def test_the_potential_of_the_log_ratio_has_the_slope_of_f_prime_wherever_float32_holds_it(
    divergence,
):
    log_ratios = np.concatenate([[-60.0, -30.0], np.log(np.float64(RATIOS)), [30.0, 60.0]])
    expected = SLOPES[divergence.name](np.exp(log_ratios))
    limits = np.finfo(np.float32)
    fits = (limits.tiny < expected) & (expected < limits.max)
    at = jnp.asarray(log_ratios[fits], jnp.float32)
    slope = derivative(divergence.potential_from_log_ratio)(at)
    np.testing.assert_allclose(slope, expected[fits], rtol=1e-4)
    assert np.all(np.isfinite(divergence.potential_from_log_ratio(at)))
    of_ratio = divergence.potential_from_ratio
    assert (of_ratio is not None) == (divergence.name in ("pearson", "alpha(2)"))
    if of_ratio is not None:  # A line, also below zero.
        expected = SLOPES[divergence.name](RATIOS) / RATIOS
        np.testing.assert_allclose(derivative(of_ratio)(-RATIOS), expected, rtol=1e-6)


@pytest.mark.parametrize("order", [1 + 1e-7, 1 - 1e-4, 0.995, 1e-7, -1e-7])
def test_alpha_has_all_its_digits_near_its_limits(order):
    near, wide = alpha(order), RATIOS.astype(np.float64)
    f = (np.expm1(order * np.log(wide)) - order * (wide - 1.0)) / (order * (order - 1.0))
    f_prime = np.expm1((order - 1.0) * np.log(wide)) / (order - 1.0)
    np.testing.assert_allclose(near.f(RATIOS), f, rtol=1e-4, atol=1e-5)
    potential = np.asarray(near.potential_from_log_ratio(jnp.log(RATIOS)))
    np.testing.assert_allclose(np.diff(potential), np.diff(f_prime), rtol=1e-3)


# First variation


def test_first_variation_of_a_ratio_is_that_of_its_logarithm_and_may_be_negative():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    of_log = fdrl.first_variation(lambda x: jnp.sum(x, -1), "pearson", output="log_ratio")
    of_ratio = fdrl.first_variation(lambda x: jnp.exp(jnp.sum(x, -1)), "pearson", output="ratio")
    np.testing.assert_allclose(fdrl.drift(x, of_ratio), fdrl.drift(x, of_log), rtol=1e-5)
    negative = fdrl.first_variation(lambda x: 3.0 * x[:, 0], "pearson", output="ratio")
    np.testing.assert_allclose(fdrl.drift(-jnp.ones((2, 1)), negative), -6.0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", divergences.REGISTRY)
def test_half_precision_outputs_give_the_float32_potential_and_drift(name, dtype):
    # Exact in both types, so that all differences come from the computation after the estimator.
    x = jnp.array([[-9.0, 1.0], [-0.5, 0.25], [3.0, 2.0], [11.0, 11.0]])
    narrow, wide = (
        fdrl.first_variation(lambda x, d=d: jnp.sum(x, -1).astype(d), name, output="log_ratio")
        for d in (dtype, jnp.float32)
    )
    np.testing.assert_allclose(narrow(x), wide(x), rtol=1e-6)
    np.testing.assert_allclose(fdrl.drift(x, narrow), fdrl.drift(x, wide), rtol=1e-6)


# Losses


@functools.cache
def difference_to_the_definition(loss):
    g, prime = GENERATORS[loss.name], derivative(GENERATORS[loss.name])

    @jax.jit
    def difference(real, flowed):
        definition = jnp.mean(prime(real) * real - g(real)) - jnp.mean(prime(flowed))
        return bregman.loss(loss, to_output(loss, real), to_output(loss, flowed))[0] - definition

    return difference


@each_loss
@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2.0, 2.0, width=32), min_size=4, max_size=4))
def test_the_loss_is_its_definition_up_to_a_constant(loss, log_ratios):
    ratios, difference = np.exp(np.float32(log_ratios)), difference_to_the_definition(loss)
    constant = difference(np.ones(2, np.float32), np.ones(2, np.float32))
    np.testing.assert_allclose(difference(ratios[:2], ratios[2:]), constant, atol=5e-5)


@each_loss
def test_the_true_ratio_of_discrete_distributions_is_the_minimiser(loss):
    states_of_p = np.repeat([0, 1, 2, 3], [1, 2, 5, 8])
    states_of_q = np.repeat([0, 1, 2, 3], [6, 6, 3, 1])
    truth = to_output(loss, jnp.asarray(np.bincount(states_of_q) / np.bincount(states_of_p)))

    def risk(table):
        return bregman.loss(loss, table[states_of_p], table[states_of_q])[0]

    np.testing.assert_allclose(jax.jit(jax.grad(risk))(truth), 0.0, atol=1e-6)
    assert np.all(np.linalg.eigvalsh(jax.jit(jax.hessian(risk))(truth)) > 1e-3)


@pytest.mark.parametrize("name", ["lr", "ukl"])
def test_losses_of_log_ratios_and_what_adam_makes_of_them_are_finite_for_any_output(name):
    out = jnp.array([-1e4, -60.0, 0.0, 39.9, 40.1, 60.0, 1e4])

    def loss(real, flowed):
        return bregman.loss(name, real, flowed)[0]

    assert np.isfinite(loss(out, out))
    for gradients in jax.grad(loss, argnums=(0, 1))(out, out):
        assert np.all(np.isfinite(np.square(gradients)))
        update, _ = (adam := optax.adam(0.1)).update(gradients, adam.init(out))
        assert np.all(np.isfinite(update))


@each_loss
def test_metrics_are_the_weighted_mean_outputs_and_ratios_in_float32(loss):
    real, flowed = np.float32([0.5, 2.0, 3.5]), np.float32([4.0, 1.0, 1.0])
    outputs = to_output(loss, real), to_output(loss, flowed)
    value, metrics = bregman.loss(loss, *outputs, weights=jnp.array([1.0, 0.0, 1.0]))
    expected = {
        "loss": value,
        "output_real": outputs[0][jnp.array([0, 2])].mean(),
        "output_flowed": outputs[1].mean(),
        "ratio_real": 2.0,
        "ratio_flowed": 2.0,
    }
    assert {*metrics} == {*expected}
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-6, err_msg=name)
    half = bregman.loss(loss, *(out.astype(jnp.bfloat16) for out in outputs))[1]
    assert {value.dtype for value in half.values()} == {np.dtype(np.float32)}
    wrong = jnp.full(100_000, 200.0)
    assert all(np.isfinite(value) for value in bregman.loss("lr", -wrong, wrong)[1].values())


MISUSE = {
    "alpha of infinity": (lambda: alpha(np.inf), "order of an alpha-divergence must be finite"),
    "typo": (lambda: get("pearsn"), "did you mean 'pearson'"),
    "case": (lambda: get("KL"), "did you mean 'kl'"),
    "alpha without order": (lambda: get("alpha()"), r"unknown divergence 'alpha\(\)'"),
    "unlike all": (lambda: get("w1"), "^unknown divergence 'w1'; allowed: pearson, "),
    "loss": (lambda: bregman.get("lsf"), "'lsf'; allowed: lsif, lr, ukl; did you mean 'lsif'"),
    "output": (
        lambda: fdrl.first_variation(jnp.ravel, "kl", output="log"),
        "unknown output 'log'; allowed: ratio, log_ratio",
    ),
    "ratio": (
        lambda: fdrl.first_variation(jnp.ravel, "kl", output="ratio"),
        r"'kl' needs a positive ratio.*use output 'log_ratio'",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()

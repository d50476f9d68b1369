"""Estimators that return half precision: ratios, losses and drifts are computed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl
from fdrl_jax import bregman, compose, divergences
from fdrl_jax.training import adversarial

DTYPES = [jnp.float16, jnp.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
# Exact in both types, so that all differences come from the computation after the estimator.
LOG_RATIOS = jnp.array([[-9.0, 1.0], [-0.5, 0.25], [3.0, 2.0], [11.0, 11.0]])


def log_ratio(x):
    return x[:, 0] + x[:, 1]


def in_type(function, dtype):
    return lambda x: function(x).astype(dtype)


@each_dtype
@pytest.mark.parametrize("name", divergences.REGISTRY)
def test_potential_and_drift_are_those_of_the_same_outputs_in_float32(name, dtype):
    narrow, wide = (
        fdrl.first_variation(function, name, output="log_ratio")
        for function in (in_type(log_ratio, dtype), log_ratio)
    )

    assert narrow(LOG_RATIOS).dtype == jnp.float32
    np.testing.assert_allclose(narrow(LOG_RATIOS), wide(LOG_RATIOS), rtol=1e-6)
    drift = fdrl.drift(LOG_RATIOS, narrow)
    np.testing.assert_allclose(drift, fdrl.drift(LOG_RATIOS, wide), rtol=1e-6)
    assert np.all(np.isfinite(drift))


@each_dtype
def test_compositions_are_those_of_the_same_outputs_in_float32(dtype):
    def logits(x):
        return x**2

    def drift(dtype):
        kind = {"output": "log_ratio"}
        narrow = (in_type(function, dtype) for function in (log_ratio, logits))
        conditioned = compose.condition(*narrow, 1, 0.5, **kind)
        return fdrl.drift(LOG_RATIOS[1:3], fdrl.first_variation(conditioned, "pearson", **kind))

    np.testing.assert_allclose(drift(dtype), drift(jnp.float32), rtol=1e-2)


@each_dtype
@pytest.mark.parametrize("name", bregman.REGISTRY)
def test_losses_and_metrics_are_those_of_the_same_outputs_in_float32(name, dtype):
    out = jnp.linspace(-3.0, 3.0, 1_000).astype(dtype)
    narrow, wide = (bregman.loss(name, *[o] * 2)[1] for o in (out, out.astype(jnp.float32)))

    assert {value.dtype for value in narrow.values()} == {np.dtype(np.float32)}
    assert narrow == wide


@each_dtype
def test_the_cross_entropy_is_that_of_the_same_logits_in_float32(dtype):
    logits, labels = LOG_RATIOS.astype(dtype), jnp.array([0, 1, 0, 1])
    np.testing.assert_array_equal(
        adversarial.cross_entropy(logits, labels), adversarial.cross_entropy(LOG_RATIOS, labels)
    )


@each_dtype
def test_parameters_and_second_derivatives_have_gradients(dtype):
    def potential(slope, dtype):
        return fdrl.first_variation(
            in_type(lambda x: slope * jnp.sum(x**2, axis=1), dtype), "pearson", output="log_ratio"
        )

    def speed(slope, dtype):
        return jnp.sum(fdrl.drift(LOG_RATIOS[1:3], potential(slope, dtype)))

    for function in (speed, lambda s, dtype: jnp.sum(potential(s, dtype)(LOG_RATIOS[1:3]))):
        expected = jax.grad(function)(0.25, jnp.float32)
        np.testing.assert_allclose(jax.grad(function)(0.25, dtype), expected, rtol=0.03)


def test_one_objective_trains_a_half_precision_estimator():
    def loss(slope):
        def estimator(x):
            return (slope * jnp.sum(x, axis=1)).astype(jnp.bfloat16)

        options = {"num_steps": 3, "step_size": 0.1, "noise_scale": 0.1}
        value, _ = fdrl.objective(
            jax.random.key(0), LOG_RATIOS, LOG_RATIOS, estimator, divergence="js", **options
        )
        return value

    value, gradient = jax.jit(jax.value_and_grad(loss))(0.5)
    assert value.dtype == jnp.float32
    assert np.isfinite(gradient)

"""Rejection: kept samples follow the data, for ratios in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax import refinement
from fdrl_jax.training import rng

NUM = 20_000


@pytest.mark.parametrize("output", ["log_ratio", "ratio"])
def test_kept_samples_of_a_wide_gaussian_follow_the_narrow_one(output):
    x_key, accept_key = jax.random.split(jax.random.key(0))
    x = 2.0 * jax.random.normal(x_key, (NUM,))  # q = N(0, 4), p = N(0, 1).
    log_ratio = -(x**2) / 8.0 + x**2 / 2.0 - jnp.log(2.0)
    outputs = log_ratio if output == "log_ratio" else jnp.exp(log_ratio)
    bound = refinement.acceptance_bound(outputs, 0.0)

    kept = refinement.accept(accept_key, outputs, bound, output=output)

    # Exact: the acceptance is the inverse of the largest p/q, here 1/2.
    assert float(jnp.mean(kept)) == pytest.approx(0.5, abs=0.02)
    assert float(jnp.var(x[kept])) == pytest.approx(1.0, abs=0.05)
    assert float(jnp.var(x)) > 3.5


def test_a_larger_quantile_keeps_more():
    outputs = jax.random.normal(jax.random.key(1), (NUM,))
    shares = [
        float(jnp.mean(refinement.accept(jax.random.key(2), outputs, c, output="log_ratio")))
        for c in (refinement.acceptance_bound(outputs, q) for q in (0.01, 0.05, 0.5, 1.0))
    ]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_decision_on_an_example_with_its_own_key_does_not_depend_on_the_batch():
    keys = rng.example_keys(rng.root_key(0), rng.Stream.SAMPLE, jnp.arange(100))
    outputs = jax.random.normal(jax.random.key(3), (100,))
    decide = jax.jit(lambda k, o: refinement.accept(k, o, -0.5, output="log_ratio"))
    whole, part = decide(keys, outputs), decide(keys[40:50], outputs[40:50])
    np.testing.assert_array_equal(whole[40:50], part)
    assert 0 < np.sum(whole) < 100


def test_a_negative_ratio_of_an_unconstrained_network_is_kept():
    outputs = jnp.full((50,), -0.1)
    assert bool(jnp.all(refinement.accept(jax.random.key(0), outputs, 0.5, output="ratio")))


def test_misuse_raises():
    with pytest.raises(ValueError, match=r"shape \[N\] with N > 0, got \(0,\)"):
        refinement.acceptance_bound(jnp.zeros((0,)))
    with pytest.raises(ValueError, match=r"from 0 to 1, got 5"):
        refinement.acceptance_bound(jnp.zeros((3,)), 5.0)
    with pytest.raises(ValueError, match="output must be one of"):
        refinement.accept(jax.random.key(0), jnp.zeros((3,)), 0.0, output="logit")
    keys = rng.example_keys(rng.root_key(0), rng.Stream.SAMPLE, jnp.arange(2))
    with pytest.raises(ValueError, match="one key per example"):
        refinement.accept(keys, jnp.zeros((3,)), 0.0, output="log_ratio")


@pytest.mark.parametrize("output", ["log_ratio", "ratio"])
def test_a_sample_whose_output_is_nan_is_rejected(output):
    outputs = jnp.array([jnp.nan, 0.1])
    kept = refinement.accept(jax.random.key(0), outputs, 0.5, output=output)
    np.testing.assert_array_equal(kept, [False, True])

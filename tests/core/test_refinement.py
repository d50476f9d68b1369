"""Refinement and rejection, against closed forms, by the sign that all ratios have."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl
from fdrl_jax.refinement import keep

KEY = jax.random.key(4)
REAL = np.asarray(jax.random.normal(jax.random.key(1), (1_000, 2)))
X = 2.0 + 0.5 * jax.random.normal(jax.random.key(2), (1_000, 2))  # Data are N(0, I).
# `s` of DGflow (arXiv 2012.00780, table 1), for d = log p/q.
FACTORS = {"kl": jnp.ones_like, "logd": lambda d: jax.nn.sigmoid(-d), "js": jax.nn.sigmoid}


def log_ratio(x):
    """log q/p of N(2, 0.25 I) over N(0, I), up to rounding."""
    return jnp.sum(-2.0 * (x - 2.0) ** 2 + 0.5 * x**2 + jnp.log(2.0), axis=-1)


@pytest.mark.parametrize("name", FACTORS)
def test_one_step_is_that_of_dgflow(name):
    options = {"num_steps": 1, "step_size": 0.01, "entropy_weight": 0.0, "divergence": name}
    gradient = jax.vmap(jax.grad(lambda x: -log_ratio(x[None])[0]))(X)
    expected = X + 0.01 * FACTORS[name](-log_ratio(X))[:, None] * gradient
    np.testing.assert_allclose(fdrl.refine(KEY, X, log_ratio, **options), expected, rtol=1e-4)


def test_the_entropy_weight_is_the_noise_of_the_flow():
    options = {"num_steps": 1, "step_size": 0.1, "divergence": "kl"}
    without, noisy = (
        fdrl.refine(KEY, X, log_ratio, entropy_weight=gamma, **options) for gamma in (0.0, 0.05)
    )
    still = fdrl.flow(KEY, X, lambda x: 0.0 * x[:, 0], num_steps=1, step_size=0.0, noise_scale=0.1)
    np.testing.assert_allclose(noisy - without, still - X, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_default_step_is_relative_to_the_spread_so_that_units_do_not_matter(scale):
    def ratio(x):
        return log_ratio(x / scale)

    found = fdrl.refine(KEY, scale * X, ratio, real=scale * REAL)
    assert found.num_steps > 0
    assert found.distances.shape == (51,)
    assert np.argmin(found.distances) == found.num_steps
    distance = fdrl.metrics.energy_distance(np.asarray(found.samples), scale * REAL)
    assert distance == pytest.approx(found.distances.min(), rel=1e-3)
    assert distance < 0.5 * found.distances[0]


def test_a_flow_that_diverges_is_followed_only_while_it_is_finite():
    def steep(x):
        return jnp.sum(jnp.exp(x**2), axis=-1)

    with pytest.warns(UserWarning, match="diverged in step"):
        found = fdrl.refine(KEY, X, steep, real=REAL, step_size=1.0, divergence="kl")
    assert np.isfinite(found.distances).all()
    assert np.isfinite(found.samples).all()
    assert found.num_steps < len(found.distances) < 51


def test_a_second_refinement_along_a_pytree_compiles_nothing():
    traces = []

    def of_scale(scale, x):
        traces.append(x.shape)
        return scale * log_ratio(x)

    for scale in (1.0, 0.5):
        traces.clear()
        ratio = jax.tree_util.Partial(of_scale, jnp.float32(scale))
        fdrl.refine(KEY, X, ratio, real=REAL, num_steps=2)
    assert len(traces) == 2, "its values, and the drift that sets the step size"


@pytest.mark.slow
def test_samples_that_no_step_improves_are_returned_as_they_are():
    good = jax.random.normal(jax.random.key(9), (500, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The ratio is not that of these samples.
        found = fdrl.refine(KEY, good, lambda x: 5.0 * x[:, 0], real=REAL, num_steps=5)
    assert found.num_steps == 0
    np.testing.assert_array_equal(found.samples, good)


def test_the_wrong_sign_a_probability_and_a_long_way_are_reported():
    with pytest.warns(UserWarning, match="cannot be negative there. Pass the negative of a disc"):
        fdrl.refine(KEY, X, lambda x: -log_ratio(x), num_steps=0)
    with pytest.warns(UserWarning, match="look like probabilities"):
        fdrl.refine(KEY, X, lambda x: jax.nn.sigmoid(log_ratio(x)), num_steps=0)
    with pytest.warns(UserWarning, match="numbers are outside of the range of the given samples"):
        fdrl.refine(KEY, X, log_ratio, divergence="kl", step_size=0.3)


def test_it_is_traced_without_data_and_not_with_them():
    run = jax.jit(lambda x: fdrl.refine(KEY, x, log_ratio, num_steps=2))
    np.testing.assert_allclose(run(X), fdrl.refine(KEY, X, log_ratio, num_steps=2), rtol=1e-4)
    with pytest.raises(ValueError, match="real data outside of jax"):
        jax.jit(lambda x: fdrl.refine(KEY, x, log_ratio, real=REAL))(X)


# Rejection


def test_kept_samples_follow_the_data_where_the_ratio_is_exact():
    x = 2.0 * jax.random.normal(jax.random.key(3), (20_000,))  # q = N(0, 4), p = N(0, 1).
    kept = keep(KEY, 3.0 * x**2 / 8.0 - jnp.log(2.0), quantile=0.0)
    # Exact: the acceptance is the inverse of the largest p/q, here 1/2.
    assert float(jnp.mean(kept)) == pytest.approx(0.5, abs=0.02)
    assert float(jnp.std(x[kept])) == pytest.approx(1.0, abs=0.03)


def test_a_larger_quantile_keeps_more_and_nan_is_not_kept():
    log_ratios = jax.random.normal(jax.random.key(1), (5_000,)).at[0].set(jnp.nan)
    shares = [float(jnp.mean(keep(KEY, log_ratios, quantile=q))) for q in (0.01, 0.5, 1.0)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(4_999 / 5_000)


ZEROS = jnp.zeros(8)


def test_a_ratio_without_a_slope_moves_nothing_and_says_so():
    with pytest.warns(UserWarning, match="all equal: no step"):
        found = fdrl.refine(KEY, X, lambda x: 2.0 + 0.0 * x[:, 0])
    np.testing.assert_array_equal(found, X)


MISUSE = {
    "no samples": (lambda: fdrl.refine(KEY, X[:0], log_ratio), r"needs samples .* \(0, 2"),
    "size": (lambda: fdrl.refine(KEY, X, log_ratio, step_size=-1.0), "step_size must be >= 0"),
    "weight": (lambda: fdrl.refine(KEY, X, log_ratio, entropy_weight=-1), "entropy_weight must"),
    "no data": (lambda: fdrl.refine(KEY, X, log_ratio, real=X[:0]), r"samples and data, .* \(0, 2"),
    "nan sample": (lambda: fdrl.refine(KEY, X * np.nan, log_ratio), "the samples are not finite"),
    "nan data": (lambda: fdrl.refine(KEY, X, log_ratio, real=X * np.nan), "the data are not fin"),
    "bytes": (lambda: fdrl.refine(KEY, np.ones((4, 2), np.uint8), log_ratio), "got uint8"),
    "nan ratio": (lambda: fdrl.refine(KEY, X, lambda x: x[:, 0] * jnp.nan), "a sample is NaN"),
    "features": (lambda: fdrl.refine(KEY, X, log_ratio, real=REAL[:, :1]), "features"),
    "column": (lambda: keep(KEY, ZEROS[:, None]), r"shape \[B\] with B > 0, got \(8, 1\)"),
    "quantile": (lambda: keep(KEY, ZEROS, quantile=5.0), "from 0 to 1, got 5"),
    "nan": (lambda: keep(KEY, jnp.full(8, jnp.nan)), "none of the log-ratios is finite"),
    "keys": (lambda: keep(jax.random.split(KEY, 2), ZEROS), "one key per example, got 2 for 8"),
}


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Refinement by a discriminator: the steps of DGflow, and misuse that would give wrong samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl
from fdrl_jax import refinement
from fdrl_jax.training import rng

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(0), (16, 2))


def log_normal(mean, variance=1.0):
    return lambda x: -jnp.sum((x - jnp.array(mean)) ** 2, -1) / (2 * variance)


def discriminator(x):
    return jnp.sin(x[:, 0]) + x[:, 1] ** 2


def generator(z):
    return jnp.stack([z[:, 0] * z[:, 1], z[:, 1] + 0.1 * z[:, 0] ** 3], axis=-1)


FACTORS = {
    "kl": jnp.ones_like,
    "logd": lambda d: 1 / (1 + jnp.exp(d)),
    "js": lambda d: 1 / (1 + jnp.exp(-d)),
}


@pytest.mark.parametrize("space", ["data", "latent"])
@pytest.mark.parametrize("name", FACTORS)
def test_a_step_is_dgflows_factor_times_the_discriminators_gradient(name, space):
    to_data = generator if space == "latent" else lambda x: x

    def of_space(x):
        return discriminator(to_data(x))

    refined = fdrl.refine(
        KEY,
        X,
        discriminator,
        divergence=name,
        num_steps=1,
        step_size=0.1,
        entropy_weight=0.0,
        generator=generator if space == "latent" else None,
    )

    gradient = jax.grad(lambda x: jnp.sum(of_space(x)))(X)
    moved = X + 0.1 * FACTORS[name](of_space(X))[:, None] * gradient
    np.testing.assert_allclose(refined, to_data(moved), rtol=1e-4, atol=1e-5)


def test_the_entropy_weight_sets_the_noise():
    options = {"num_steps": 1, "step_size": 0.1, "check": False}
    without, noisy = (
        fdrl.refine(KEY, X, discriminator, entropy_weight=gamma, **options) for gamma in (0.0, 0.05)
    )

    still = {"num_steps": 1, "step_size": 0.1, "noise_scale": 0.1}
    noise = fdrl.flow(KEY, X, lambda x: 0.0 * x[:, 0], **still)
    np.testing.assert_allclose(noisy - without, noise - X, rtol=1e-3, atol=1e-6)


def test_the_exact_corrector_equals_the_right_discriminator():
    data, own, other = log_normal(0.0), log_normal((1.0, 0.0), 2.0), log_normal((-1.0, 0.5), 0.5)
    refine = functools.partial(fdrl.refine, KEY, X, divergence="js", step_size=0.01)

    corrected = refine(lambda x: data(x) - other(x), corrector=lambda x: other(x) - own(x))

    np.testing.assert_allclose(corrected, refine(lambda x: data(x) - own(x)), atol=1e-5)


def test_refinement_by_the_exact_discriminator_brings_samples_nearer_to_the_data():
    x = jax.random.normal(KEY, (2_000, 2)) * 1.2 + 0.3

    def logit(x):
        return log_normal(0.0)(x) - log_normal(0.3, 1.44)(x) + 2 * np.log(1.2)

    data = np.asarray(jax.random.normal(jax.random.key(1), (2_000, 2)))

    refined = fdrl.refine(KEY, x, logit, divergence="logd", step_size=0.05)

    before, after = (fdrl.metrics.energy_distance(np.asarray(a), data) for a in (x, refined))
    assert after < 0.3 * before


@pytest.mark.parametrize("latent", [False, True])
def test_a_discriminator_that_ends_in_a_sigmoid_is_an_error(latent):
    def probability(x):
        return jax.nn.sigmoid(discriminator(x))

    refine = functools.partial(
        fdrl.refine, KEY, X, probability, generator=generator if latent else None
    )
    with pytest.raises(ValueError, match="look like probabilities; return the logit"):
        refine()
    assert refine(check=False).shape == X.shape


def test_inside_jit_the_check_must_be_declined():
    def run(check):
        return jax.jit(lambda x: fdrl.refine(KEY, x, discriminator, check=check))(X)

    with pytest.raises(ValueError, match="pass check=False if the discriminator returns logits"):
        run(True)
    np.testing.assert_allclose(
        run(False), fdrl.refine(KEY, X, discriminator, check=False), rtol=1e-4, atol=1e-4
    )


def test_samples_that_move_farther_than_they_are_spread_cause_a_warning():
    def steep(x):
        return 10.0 * discriminator(x)

    with pytest.warns(UserWarning, match="farther than their spread of .* train FDRL with these"):
        fdrl.refine(KEY, X, steep, step_size=1.0)


def test_a_single_sample_that_moves_a_little_causes_no_warning():
    refined = fdrl.refine(KEY, X[:1], discriminator, step_size=1e-3, entropy_weight=0.0)
    assert np.isfinite(refined).all()


# Rejection

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


@pytest.mark.parametrize(
    ("output", "bound"), [("ratio", -0.1), ("ratio", 0.0), ("log_ratio", np.nan)]
)
def test_a_bound_that_keeps_hardly_a_sample_is_an_error(output, bound):
    with pytest.raises(ValueError, match="bound must be a number, and above 0 if"):
        refinement.accept(jax.random.key(0), jnp.ones((3,)), bound, output=output)


@pytest.mark.parametrize("output", ["log_ratio", "ratio"])
def test_a_sample_whose_output_is_nan_is_rejected(output):
    outputs = jnp.array([jnp.nan, 0.1])
    kept = refinement.accept(jax.random.key(0), outputs, 0.5, output=output)
    np.testing.assert_array_equal(kept, [False, True])

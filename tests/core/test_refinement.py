"""Refinement by a discriminator: the steps of DGflow, and misuse that would give wrong samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl

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

    noise = fdrl.langevin_step(
        jax.random.fold_in(KEY, 0), X, lambda x: 0.0 * x[:, 0], step_size=0.1, noise_scale=0.1
    )
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

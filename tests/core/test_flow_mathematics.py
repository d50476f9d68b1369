"""The flow against closed forms: gradient descent, Ornstein-Uhlenbeck, exact density ratios."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl

SIGMAS = 5.0  # Allowed sampling error, in standard deviations.


def quadratic(x, curvature=1.0):
    return 0.5 * curvature * jnp.sum(x**2, axis=-1)


def test_without_noise_the_flow_is_gradient_descent_on_the_potential():
    def potential(x):
        return jnp.sum(jnp.sin(x) + 0.1 * x**4, axis=-1)

    def gradient(x):
        return np.cos(x) + 0.4 * x**3

    x0 = jax.random.normal(jax.random.key(0), (8, 3))
    expected = np.float64(x0)
    for _ in range(20):
        expected = expected - 0.05 * gradient(expected)

    moved = fdrl.flow(
        jax.random.key(1), x0, potential, num_steps=20, step_size=0.05, noise_scale=0.0
    )

    np.testing.assert_allclose(moved, expected, atol=1e-6)
    np.testing.assert_allclose(fdrl.drift(x0, potential), -gradient(np.asarray(x0)), atol=1e-6)


def test_a_quadratic_potential_gives_the_mean_and_variance_of_the_ornstein_uhlenbeck_process():
    num, curvature, step_size, noise_scale = 20_000, 2.0, 0.05, 0.3
    start = 1.0 + 0.5 * jax.random.normal(jax.random.key(0), (num, 1))

    _, path = fdrl.flow(
        jax.random.split(jax.random.key(1), num),
        start,
        lambda x: quadratic(x, curvature),
        num_steps=101,
        step_size=step_size,
        noise_scale=noise_scale,
        observe=lambda x, drift: x,
    )

    # x' = c x + nu xi: a geometric series.
    c = 1.0 - step_size * curvature
    for k in (1, 3, 10, 30, 100):
        x = np.asarray(path[k])
        variance = c ** (2 * k) * 0.25 + noise_scale**2 * (1.0 - c ** (2 * k)) / (1.0 - c**2)
        assert x.mean() == pytest.approx(c**k, abs=SIGMAS * np.sqrt(variance / num))
        assert x.var() == pytest.approx(variance, rel=SIGMAS * np.sqrt(2.0 / num))


def test_noise_has_mean_zero_variance_nu_squared_and_is_independent_over_steps_and_examples():
    noise_scale, num = 0.2, 4_000
    _, path = fdrl.flow(
        jax.random.key(0),
        jnp.zeros((num, 2)),
        lambda x: jnp.zeros(len(x)),
        num_steps=6,
        step_size=1.0,
        noise_scale=noise_scale,
        observe=lambda x, drift: x,
    )
    noise = np.diff(np.asarray(path), axis=0) / noise_scale  # [steps, examples, coordinates]
    columns = np.moveaxis(noise, 1, 0).reshape(num, -1)

    assert noise.mean() == pytest.approx(0.0, abs=SIGMAS / np.sqrt(noise.size))
    assert noise.var() == pytest.approx(1.0, rel=SIGMAS * np.sqrt(2.0 / noise.size))
    # Between steps and coordinates, and between one example and the next.
    correlations = np.corrcoef(columns, rowvar=False) - np.eye(10)
    assert np.all(abs(correlations) < SIGMAS / np.sqrt(num))
    neighbours = np.mean(columns[1:] * columns[:-1], axis=0)
    assert np.all(abs(neighbours) < SIGMAS / np.sqrt(num))


def test_noise_scale_is_the_root_of_twice_step_size_times_entropy_weight():
    assert fdrl.noise_scale(0.5, 0.04) == pytest.approx(0.2)
    assert fdrl.noise_scale(3.0, 0.0) == 0.0


@pytest.mark.parametrize("arguments", [(-1.0, 1.0), (1.0, -1.0)])
def test_noise_scale_refuses_negative_arguments(arguments):
    with pytest.raises(ValueError, match=r"must be >= 0, got .*-1\.0"):
        fdrl.noise_scale(*arguments)


def test_the_exact_ratio_of_shifted_gaussians_moves_the_source_to_the_target():
    # As in figure 2: q' = N(0, 0.1 I), p = N((1, 1), 0.1 I). For KL the drift is shift / 0.1
    # everywhere, so the source arrives at time 0.1.
    variance, shift, num_steps = 0.1, jnp.array([1.0, 1.0]), 15

    def log_ratio(x):
        return (jnp.sum((x - shift) ** 2, -1) - jnp.sum(x**2, -1)) / (2.0 * variance)

    x0 = np.sqrt(variance) * jax.random.normal(jax.random.key(0), (100, 2))
    moved = fdrl.flow(
        jax.random.key(1),
        x0,
        fdrl.first_variation(log_ratio, "kl", output="log_ratio"),
        num_steps=num_steps,
        step_size=variance / num_steps,
        noise_scale=0.0,
    )

    np.testing.assert_allclose(moved, x0 + shift, atol=1e-5)


def test_the_gradient_through_the_flow_is_the_closed_form():
    curvature, step_size, num_steps = jnp.array([0.5, 2.0]), 0.1, 12
    x0 = jnp.array([[1.0, -2.0], [0.3, 0.7]])

    def end(x0, curvature, step_size):
        return fdrl.flow(
            jax.random.key(0),
            x0,
            lambda x: 0.5 * jnp.sum(curvature * x**2, -1),
            num_steps=num_steps,
            step_size=step_size,
            noise_scale=0.0,
        )

    gradients = jax.grad(lambda *a: jnp.sum(end(*a)), argnums=(0, 1, 2))(x0, curvature, step_size)

    # x_K = (1 - eta a)^K x_0.
    base = 1.0 - step_size * curvature
    slope = num_steps * base ** (num_steps - 1)
    np.testing.assert_allclose(gradients[0], jnp.broadcast_to(base**num_steps, x0.shape), rtol=1e-5)
    np.testing.assert_allclose(gradients[1], -step_size * slope * x0.sum(0), rtol=1e-5)
    np.testing.assert_allclose(gradients[2], -jnp.sum(curvature * slope * x0), rtol=1e-5)


def test_the_gradient_to_the_noise_scale_is_the_noise_that_was_added():
    def end(noise_scale):
        return fdrl.flow(
            jax.random.key(0),
            jnp.zeros((3, 2)),
            lambda x: jnp.zeros(len(x)),
            num_steps=4,
            step_size=1.0,
            noise_scale=noise_scale,
        )

    np.testing.assert_allclose(jax.jacfwd(end)(0.1), end(1.0), rtol=1e-5)


@pytest.mark.parametrize(("prior_variance", "entropy_weight"), [(6.0, 0.1), (0.2, 0.5)])
def test_with_an_exact_ratio_training_comes_to_rest_at_tempered_data(
    prior_variance, entropy_weight
):
    # Lemma 1 in one dimension: p = N(0, 1.5), and all distributions are Gaussians with mean 0.
    data_variance, step_size, num = 1.5, 0.05, 1_500
    expected = (1.0 + entropy_weight) * data_variance  # Of p^(1 / (1 + gamma)).
    noise_scale = fdrl.langevin.noise_scale(step_size, entropy_weight)

    @jax.jit
    def flowed_variance(key, variance):
        start, noise = jax.random.split(key)
        x0 = jnp.sqrt(prior_variance) * jax.random.normal(start, (num, 1))
        curvature = 1.0 / data_variance - 1.0 / variance  # Of log r = log(q~ / p).
        x = fdrl.flow(
            noise,
            x0,
            lambda x: quadratic(x, curvature),
            num_steps=600,
            step_size=step_size,
            noise_scale=noise_scale,
        )
        return jnp.mean(x**2)

    # The estimator follows the flowed samples slowly, as in training; it starts at the prior, where
    # the curvature of a narrow one is negative and the flow moves samples apart.
    variance = prior_variance
    for i in range(25):
        reached = min(float(flowed_variance(jax.random.key(i), variance)), 10.0)
        variance = variance**0.9 * reached**0.1
    assert variance == pytest.approx(expected, rel=0.05)

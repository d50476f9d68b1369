"""Densities from a flow without noise, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import fdrl_jax as fdrl

KEY = jax.random.key(0)


def prior(x):
    return jnp.sum(norm.logpdf(x), axis=-1)


def log_density(x, potential, log_ratio=lambda x: jnp.zeros(len(x)), **options):
    options = {"num_steps": 10, "step_size": 0.1} | options
    return fdrl.ratio.log_density(x, potential, log_ratio, prior, **options)


def test_a_linear_flow_scales_a_gaussian():
    x = jax.random.normal(KEY, (5, 3))
    curvature = jnp.array([0.5, -1.0, 2.0])
    density = log_density(x, lambda x: 0.5 * jnp.sum(curvature * x**2, axis=-1))
    scale = (1.0 - 0.1 * curvature) ** 10
    np.testing.assert_allclose(
        density.flowed, jnp.sum(norm.logpdf(x, scale=scale), axis=-1), rtol=1e-4
    )
    np.testing.assert_allclose(density.largest_eigenvalue, 0.2, rtol=1e-5)
    assert density.residual.max() < 1e-4


def double_well(x):
    return jnp.sum(0.25 * x**4 - x**2, axis=-1) / (1.0 + 0.1 * jnp.sum(x**2, axis=-1))


def test_the_inverse_is_the_start_of_the_flow():
    x0 = jax.random.normal(KEY, (20, 2))
    x = fdrl.flow(KEY, x0, double_well, num_steps=10, step_size=0.1, noise_scale=0)
    density = log_density(x, double_well)
    assert density.largest_eigenvalue.max() < 1.0
    np.testing.assert_allclose(density.start, x0, atol=1e-3)


def test_a_density_in_one_dimension_integrates_to_one():
    grid = jnp.linspace(-6.0, 6.0, 4_001)[:, None]
    density = log_density(grid, double_well)
    assert float(jnp.sum(jnp.exp(density.flowed)) * 12.0 / 4_000) == pytest.approx(1.0, abs=2e-3)


def test_the_ratio_is_subtracted():
    x = jax.random.normal(KEY, (4, 2))
    density = log_density(x, double_well, lambda x: x[:, 0])
    np.testing.assert_allclose(density.data, density.flowed - x[:, 0], rtol=1e-6)


def test_a_step_that_folds_space_is_seen():
    x = jnp.zeros((1, 1))
    density = log_density(x, lambda x: jnp.sum(x**2, axis=-1), step_size=0.6)
    assert float(density.largest_eigenvalue[0]) == pytest.approx(1.2)
    assert np.isnan([density.flowed[0], density.data[0]]).all()


def test_points_may_be_whole_numbers_in_lists():
    found, expected = (log_density(x, double_well) for x in ([[0, 1]], jnp.array([[0.0, 1.0]])))
    np.testing.assert_array_equal(found.data, expected.data)


@pytest.mark.parametrize("shape", [(3,), (3, 65), (3, 2, 2)])
def test_points_of_other_shapes_are_an_error(shape):
    with pytest.raises(ValueError, match="1 to 64 features"):
        log_density(jnp.zeros(shape), double_well)


def test_functions_return_one_number_per_point():
    x, options = jnp.ones((3, 1)), {"num_steps": 1, "step_size": 0.1}
    with pytest.raises(ValueError, match=r"prior_log_density must return one number per point"):
        fdrl.ratio.log_density(x, double_well, double_well, norm.logpdf, **options)
    with pytest.raises(ValueError, match=r"log_ratio_fn must return one .*\(3,\), got \(3, 1\)"):
        fdrl.ratio.log_density(x, double_well, jnp.square, prior, **options)

"""Paths between points of a prior: their ends, their lengths, their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax import interpolation

WEIGHTS = jnp.linspace(0.0, 1.0, 7)


@pytest.fixture
def ends():
    return jax.random.normal(jax.random.key(0), (2, 4, 4, 3))


@pytest.mark.parametrize("between", [interpolation.linear, interpolation.spherical])
def test_a_path_starts_and_ends_at_the_given_points(ends, between):
    path = between(*ends, WEIGHTS)
    assert path.shape == (7, 4, 4, 3)
    np.testing.assert_allclose(path[0], ends[0], atol=1e-5)
    np.testing.assert_allclose(path[-1], ends[1], atol=1e-5)


def test_a_spherical_path_turns_at_a_constant_rate_and_keeps_the_length():
    path = interpolation.spherical(jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), WEIGHTS)
    angles = np.pi / 2 * np.asarray(WEIGHTS)
    np.testing.assert_allclose(path, 2 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6)


@pytest.mark.parametrize("factor", [3.0, 0.0, -1.0])
def test_where_no_arc_is_defined_a_spherical_path_is_the_linear_one(factor):
    a = jnp.array([1.0, 2.0])
    path = interpolation.spherical(a, factor * a, WEIGHTS)
    np.testing.assert_allclose(path, interpolation.linear(a, factor * a, WEIGHTS), atol=1e-5)

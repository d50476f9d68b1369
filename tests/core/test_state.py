"""The train state and its update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdrl_jax.training import state

VARIABLES = {"params": {"w": jnp.array([1.0, 2.0])}, "vectors": {"u": jnp.array([5.0])}}
GRADS = {"w": jnp.array([10.0, -10.0])}


def test_a_new_state_is_at_step_zero_and_its_average_starts_at_the_parameters():
    new = state.create(VARIABLES, optax.adam(0.1))

    assert new.step == 0
    assert new.step.dtype == jnp.int32
    chex.assert_trees_all_equal(new.variables, VARIABLES)
    chex.assert_trees_all_equal(new.ema_variables, VARIABLES)


def test_a_state_holds_only_arrays_and_may_be_donated():
    new = state.create(jax.tree.map(jnp.copy, VARIABLES), optax.adam(0.1))

    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(new))
    doubled = jax.jit(lambda s: jax.tree.map(lambda a: 2 * a, s), donate_argnums=0)(new)
    chex.assert_trees_all_equal(doubled.variables, doubled.ema_variables)


def test_an_update_leaves_untrained_variables_and_those_of_the_average_as_they_are():
    optimizer = optax.sgd(0.1)
    before = state.create(VARIABLES, optimizer)
    moved = before._replace(variables={**VARIABLES, "vectors": {"u": jnp.array([6.0])}})

    after = state.apply_gradients(moved, GRADS, optimizer, 0.9)

    chex.assert_trees_all_equal(after.variables["vectors"], {"u": jnp.array([6.0])})
    chex.assert_trees_all_equal(after.ema_variables["vectors"], {"u": jnp.array([5.0])})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_average_of_parameters_of_any_precision_reaches_them(dtype):
    optimizer = optax.sgd(0.0)
    start = state.create({"params": {"w": jnp.ones((), dtype)}}, optimizer)
    start = start._replace(variables={"params": {"w": jnp.asarray(1.5, dtype)}})

    end = jax.lax.fori_loop(
        0,
        3_000,
        lambda _, now: state.apply_gradients(now, {"w": jnp.zeros((), dtype)}, optimizer, 0.998),
        start,
    )

    assert end.variables["params"]["w"].dtype == dtype
    assert end.ema_variables["params"]["w"].dtype == jnp.float32
    expected = 1.5 - 0.5 * 0.998**3_000
    np.testing.assert_allclose(end.ema_variables["params"]["w"], expected, rtol=1e-4)


@pytest.mark.parametrize("rate", [2, -0.1, 1.0, float("nan"), np.float32(1.5)])
def test_a_rate_of_the_average_outside_its_range_is_an_error(rate):
    optimizer = optax.sgd(0.1)
    with pytest.raises(ValueError, match="ema_rate must be at least 0 and below 1, got"):
        state.apply_gradients(state.create(VARIABLES, optimizer), GRADS, optimizer, rate)


def test_the_optimizers_state_is_passed_from_update_to_update():
    optimizer = optax.sgd(0.1, momentum=0.5)
    now = state.create(VARIABLES, optimizer)

    for _ in range(2):
        now = state.apply_gradients(now, GRADS, optimizer, 0.9)

    # Velocities 10 and 15.
    chex.assert_trees_all_close(now.variables["params"]["w"], jnp.array([1.0 - 2.5, 2.0 + 2.5]))


def test_the_rate_of_the_average_grows_to_its_value_on_a_ramp():
    optimizer, rate = optax.sgd(0.1), 0.25
    now = state.create(VARIABLES, optimizer)
    expected = VARIABLES["params"]["w"]

    # (1 + t) / (10 + t): 0.1, 0.1818, 0.25, and then the rate itself.
    for ramp in (0.1, 2.0 / 11.0, 0.25, 0.25, 0.25):
        now = state.apply_gradients(now, GRADS, optimizer, rate, ema_ramp=True)
        expected = ramp * expected + (1.0 - ramp) * now.variables["params"]["w"]
        np.testing.assert_allclose(now.ema_variables["params"]["w"], expected, rtol=1e-6)

"""Schedules of step size and noise over the flow, and observers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl

KEY = jax.random.key(7)
START = jax.random.normal(jax.random.key(0), (8, 2))
HYPER = {"step_size": 0.1, "noise_scale": 0.3}

each_kind_of_key = pytest.mark.parametrize(
    "key", [KEY, jax.random.split(KEY, 8)], ids=["one_key", "a_key_an_example"]
)


def potential(x):
    return jnp.sum(jnp.cos(x) + 0.5 * x**2, axis=-1)


@each_kind_of_key
def test_an_observer_sees_each_point_and_its_drift_and_changes_nothing(key):
    def observe(x, drift):
        return {"x": x, "speed": jnp.linalg.norm(drift, axis=-1)}

    end, seen = fdrl.flow(key, START, potential, num_steps=4, observe=observe, **HYPER)

    np.testing.assert_allclose(
        end, fdrl.flow(key, START, potential, num_steps=4, **HYPER), atol=1e-6
    )
    np.testing.assert_array_equal(seen["x"][0], START)
    drifts = np.stack([fdrl.drift(x, potential) for x in seen["x"]])
    np.testing.assert_allclose(seen["speed"], np.linalg.norm(drifts, axis=-1), rtol=1e-5)


def scheduled(key, x0, num_steps, first_step=0):
    return fdrl.flow(
        key,
        x0,
        potential,
        num_steps=num_steps,
        step_size=lambda k: 0.1 / (k + 1),
        noise_scale=lambda k: 0.3 * (k + 1),
        first_step=first_step,
    )


@each_kind_of_key
def test_schedules_give_each_step_its_step_size_and_noise_wherever_the_flow_is_split(key):
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    x = START
    for k in range(3):
        step = {"step_size": 0.1 / (k + 1), "noise_scale": 0.3 * (k + 1)}
        x = fdrl.langevin_step(fold_in(key, k), x, potential, **step)

    np.testing.assert_allclose(scheduled(key, START, 3), x, atol=1e-6)
    cut = scheduled(key, scheduled(key, START, 2), 1, first_step=2)
    np.testing.assert_allclose(cut, x, atol=1e-6)


def at_steps(schedule, *steps):
    return [float(schedule(np.float32(k))) for k in steps]


def schedules(num_steps=10, noise_scale=0.1, **options):
    method = fdrl.FDRL(num_steps=num_steps, step_size=2.0, noise_scale=noise_scale, **options)
    return method.schedules()


def test_the_step_size_decays_geometrically_over_k_steps_and_then_stays():
    step_size = schedules(step_size_decay=0.01)["step_size"]

    assert at_steps(step_size, 0, 5, 10, 15) == pytest.approx([2.0, 0.2, 0.02, 0.02])


def test_without_training_steps_the_decay_is_complete_after_the_first_step():
    flow = schedules(num_steps=0, step_size_decay=0.01)

    assert at_steps(flow["step_size"], 0, 1, 2) == pytest.approx([2.0, 0.02, 0.02])
    assert at_steps(flow["noise_scale"], 0, 1, 2) == pytest.approx([0.1, 0.01, 0.01])


def test_the_noise_scale_keeps_the_entropy_weight_when_the_step_size_changes():
    flow = schedules(step_size_decay=0.01)

    etas, nus = (np.array(at_steps(flow[name], 0, 3, 12)) for name in ("step_size", "noise_scale"))
    np.testing.assert_allclose(nus**2 / (2.0 * etas), 0.1**2 / 4.0, rtol=1e-5)


def test_a_decay_draws_no_noise_where_the_noise_scale_is_zero():
    assert schedules(noise_scale=0.0, step_size_decay=0.5)["noise_scale"] == 0.0


def test_without_decay_both_are_plain_numbers():
    assert schedules() == {"step_size": 2.0, "noise_scale": 0.1}

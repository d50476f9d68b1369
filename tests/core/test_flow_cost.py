"""Work that the flow avoids."""

import jax
import jax.numpy as jnp
import pytest

import fdrl_jax as fdrl

KEY = jax.random.key(7)
START = jax.random.normal(jax.random.key(0), (8, 2))


def potential(x):
    return jnp.sum(jnp.cos(x) + 0.5 * x**2, axis=-1)


def test_two_stages_trace_the_potential_once():
    traces = []

    def counted(x):
        traces.append(1)
        return potential(x)

    fdrl.two_stage(
        KEY, START, counted, num_steps=4, num_refine_steps=3, step_size=0.1, noise_scale=0.3
    )

    assert len(traces) == 1


@pytest.mark.parametrize(
    "key", [KEY, jax.random.split(KEY, 8)], ids=["one_key", "a_key_per_example"]
)
def test_no_noise_is_drawn_for_a_noise_scale_of_zero(key):
    def program(noise_scale):
        return str(
            jax.make_jaxpr(
                lambda x: fdrl.flow(
                    key, x, potential, num_steps=3, step_size=0.1, noise_scale=noise_scale
                )
            )(START)
        )

    assert "random_bits" in program(0.1)
    assert "random_bits" not in program(0.0)
    assert "random_bits" not in program(0)


def test_the_module_of_the_flow_is_not_hidden_by_the_function():
    assert fdrl.langevin.flow is fdrl.flow
    assert fdrl.method.objective is fdrl.objective

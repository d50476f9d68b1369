"""The hyper-parameters of a flow: how the step size decays, and the noise with it."""

import numpy as np
import pytest

from fdrl_jax.problem import FlowParams


def at_steps(schedule, *steps):
    return [float(schedule(np.float32(k))) for k in steps]


def test_the_step_size_decays_geometrically_over_k_steps_and_then_stays():
    step_size = FlowParams(10, 2.0, 0.1, step_size_decay=0.01).schedules()["step_size"]

    assert at_steps(step_size, 0, 5, 10, 15) == pytest.approx([2.0, 0.2, 0.02, 0.02])


def test_the_noise_follows_the_step_size_at_the_same_entropy_weight():
    flow = FlowParams(10, 2.0, 0.1, step_size_decay=0.01).schedules()

    etas, nus = (np.array(at_steps(flow[name], 0, 3, 12)) for name in ("step_size", "noise_scale"))
    np.testing.assert_allclose(nus**2 / (2.0 * etas), 0.1**2 / 4.0, rtol=1e-5)


def test_without_decay_both_are_plain_numbers():
    assert FlowParams(10, 2.0, 0.1).schedules() == {"step_size": 2.0, "noise_scale": 0.1}

"""A denoiser learns with the estimator and changes only refined samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_problem

from fdrl_jax import networks
from fdrl_jax.training import samplers, steps

NOISE = 0.5


def denoise(variables, x):
    """Shrinks towards a centre; for Gaussian data, the best denoiser is of this kind."""
    own = variables["params"]["denoiser"]
    return own["centre"] + own["factor"] * (x - own["centre"])


def with_denoiser():
    variables = small_problem.initial_variables()
    own = {"centre": jnp.zeros(2), "factor": jnp.float32(1.0)}
    variables = {"params": {**variables["params"], "denoiser": own}}
    return small_problem.problem()._replace(denoise=denoise), variables


@pytest.mark.slow
def test_the_denoiser_becomes_the_posterior_mean_of_gaussian_data():
    problem, variables = with_denoiser()
    state = small_problem.initial_state(variables=variables)
    step = small_problem.train_step(problem, dequantisation=NOISE, batch_size=1_024)
    run = jax.jit(steps.repeat_steps(step, 2_000))
    state, metrics = run(small_problem.KEY, state, small_problem.CONSTANTS, None, 2_000)
    # Data are N(centre, 0.3^2), so this is the factor of x + e - centre in E[x | x + e] - centre,
    # where e has twice the noise of data.
    own = state.ema_variables["params"]["denoiser"]
    shrinkage = 0.09 / (0.09 + (2 * NOISE) ** 2)
    np.testing.assert_allclose(own["centre"], small_problem.CONSTANTS.data, atol=0.05)
    assert float(own["factor"]) == pytest.approx(shrinkage, abs=0.04)
    error = 0.09 * (1 - shrinkage)
    assert float(jnp.mean(metrics["denoising_loss"][-100:])) == pytest.approx(error, rel=0.1)


def test_the_estimator_trains_as_without_a_denoiser():
    def params_after(problem, variables, num_steps=3):
        state = small_problem.initial_state(variables=variables)
        step = jax.jit(small_problem.train_step(problem, dequantisation=NOISE))
        for _ in range(num_steps):
            state, metrics = step(small_problem.KEY, state, small_problem.CONSTANTS)
        return state.variables["params"], metrics

    plain, of_plain = params_after(small_problem.problem(), small_problem.initial_variables())
    joint, of_joint = params_after(*with_denoiser())
    for name, value in plain.items():
        np.testing.assert_allclose(joint[name], value, rtol=1e-5)
    np.testing.assert_allclose(of_joint["loss"], of_plain["loss"], rtol=1e-5)
    assert of_joint.keys() - of_plain.keys() == {"denoising_loss"}
    assert float(joint["denoiser"]["factor"]) != 1.0


def test_only_refined_samples_are_denoised():
    problem, variables = with_denoiser()
    variables["params"]["denoiser"]["factor"] = jnp.float32(0.0)  # Every sample becomes the centre.
    batch = {"position": jnp.arange(6)}
    raw, clean = (
        jax.jit(samplers.make_sampler(of, samplers.STAGES))(
            small_problem.KEY, variables, small_problem.CONSTANTS, batch
        )
        for of in (small_problem.problem(), problem)
    )
    for stage in ("prior", "bridged"):
        np.testing.assert_allclose(clean[stage], raw[stage], atol=1e-6)
    np.testing.assert_array_equal(clean["refined"], jnp.zeros((6, 2)))
    assert np.all(raw["refined"] != 0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_network_keeps_shape_and_type_and_has_its_own_parameters(dtype):
    denoiser = networks.Denoiser(width=8, depth=1, dtype=dtype)
    estimator = {"params": {"conv1": {"kernel": jnp.ones(3)}}, "vectors": {}}
    variables = denoiser.add_params(estimator, jax.random.key(0), (8, 6, 3))
    x = jax.random.normal(jax.random.key(1), (5, 8, 6, 3))
    y = jax.jit(denoiser.denoise)(variables, x)
    assert (y.shape, y.dtype) == (x.shape, jnp.float32)
    assert np.any(y != x)
    assert variables["params"]["conv1"] is estimator["params"]["conv1"]
    assert variables["vectors"] == {}
    assert estimator["params"].keys() == {"conv1"}
    single = jax.jit(denoiser.denoise)(variables, x[2:3])
    np.testing.assert_allclose(single, y[2:3], rtol=1e-2, atol=1e-2)


def test_a_denoiser_without_noise_is_an_error():
    with pytest.raises(ValueError, match="a denoiser needs dequantisation above 0"):
        small_problem.train_step(with_denoiser()[0])

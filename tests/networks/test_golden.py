"""Networks, losses, flows and training agree numerically with the authors' implementation."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdrl_jax as fdrl
from examples.authors_weights import torch_shapes
from fdrl_jax import FDRL, bregman, priors
from fdrl_jax.training import rng, state, steps
from fdrl_jax.training.problem import Constants, Estimator, Problem

# The networks for images take long to compile.
DEEP = ("resnet32", "resnet64_shallow_sn_attn")
NAMES = ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP)]
# Rounding error of x in float32, a lower bound of the error of a difference of two positions.
ROUNDING = 4e-7
FLOW_TOLERANCE = {"float64": 1e-4, "float32": 3e-3}
# The deep network is tested with one divergence and only in float64. In float32, rounding of x
# moves a few of its two million activations across the kink of LeakyReLU, and each of them changes
# the flow by 1e-3.
FLOWS = {
    "mlp": [*itertools.product(FLOW_TOLERANCE, golden.POTENTIALS)],
    "resnet64_shallow_sn_attn": [*itertools.product(FLOW_TOLERANCE, golden.POTENTIALS)],
    "resnet32": [("float64", "logD")],
}

load = functools.cache(golden.load)


def tolerance(name: str) -> float:
    return 1e-5 if name == "mlp" else 1e-4


@pytest.mark.parametrize("name", [*NAMES[:2], "resnet64_shallow_sn_attn"])
def test_outputs_and_input_gradients_equal_the_reference_values(name):
    case = load(name)

    @jax.jit
    def gradient_and_output(variables, x):
        def total(x):
            out = case.net.apply(variables, x)
            return out.sum(), out

        return jax.grad(total, has_aux=True)(x)

    grad, out = gradient_and_output(case.variables, case.images("x"))
    assert_close(out, case.numbers["y"], tolerance(name))
    # In float32, gradient and flow of the deep network depend on the processor.
    assert_close(grad, case.images("grad_x"), 3e-3 if name == "resnet32" else tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradient_norms_equal_the_reference_values(name):
    case = load(name)
    fixed = {key: value for key, value in case.variables.items() if key != "params"}
    x = jnp.concatenate([case.images("x_real"), case.images("x")])

    @jax.jit
    def losses_and_norms(params, fixed, x):
        def losses(params):
            real, flowed = jnp.split(case.net.apply({"params": params, **fixed}, x), 2)
            return {k: bregman.loss(loss, real, flowed)[0] for k, loss in golden.LOSSES.items()}

        values, pullback = jax.vjp(losses, params)
        # A loop, because compiling one backward pass per loss takes longer.
        each = dict(zip(values, jnp.eye(len(values)), strict=True))
        norms = jax.lax.map(lambda chosen: optax.tree.norm(pullback(chosen)[0]), each)
        return values, dict(zip(values, norms, strict=True))

    values, norms = losses_and_norms(case.variables["params"], fixed, x)
    for key in golden.LOSSES:
        assert_close(values[key], case.numbers[f"loss_{key}"], tolerance(name))
        assert_close(norms[key], case.numbers[f"gradnorm_{key}"], tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_flows_equal_the_reference_values(name):
    case = load(name)
    potentials = golden.POTENTIALS

    # One program for all divergences, because compiling it takes longer than running it.
    @jax.jit
    def flow(variables, x, index, step_size):
        net, num_steps = case.net.clone(dtype=x.dtype), int(case.numbers["steps"])

        def potential(x):
            return jax.lax.switch(index, [*potentials.values()], net.apply(variables, x))

        hyper = {"num_steps": num_steps, "step_size": step_size, "noise_scale": 0.0}
        return fdrl.flow(jax.random.key(0), x, potential, **hyper)

    start = case.images("x")
    for dtype, key in FLOWS[name]:
        with jax.enable_x64(dtype == "float64"):
            step_size = jnp.asarray(case.numbers[f"eta_{key}"])
            x0, index = jnp.asarray(start, dtype), list(potentials).index(key)
            end = np.asarray(flow(case.variables, x0, index, step_size))
        expected = case.images(f"flow_{key}")
        allowed = FLOW_TOLERANCE[dtype] * norm(expected - start)
        assert norm(end - expected) <= allowed + ROUNDING * np.sqrt(start.size), (dtype, key)


@pytest.mark.parametrize("name", golden.NETWORKS)
def test_importing_expects_the_names_of_the_authors_code(name):
    features = load(name).images("x").shape[-1]
    assert torch_shapes(golden.NETWORKS[name], features) == golden.shapes(name)


def norm(array):
    return np.linalg.norm(np.asarray(array, np.float64))


def assert_close(actual, expected, relative):
    """Compares norms of differences, because single elements near zero may be inaccurate."""
    assert np.shape(actual) == np.shape(expected)
    assert norm(actual - expected) <= relative * norm(expected)


def test_five_steps_of_training_equal_the_reference_values():
    net, variables, _ = load("mlp")
    with np.load(golden.FOLDER / "train_mlp_LSIF_Pearson.npz") as file:
        numbers = dict(file)
    method = FDRL(
        loss="lsif",
        divergence="pearson",
        num_steps=int(numbers["K"]),
        step_size=float(numbers["eta"]),
        noise_scale=0.0,
    )
    prior, optimizer = priors.batch("source"), optax.adam(float(numbers["lr"]))
    step = steps.make_train_step(
        Problem(method, Estimator(net.apply), prior.sample),
        optimizer=optimizer,
        draw=lambda data, host_batch, key, positions: host_batch,  # Stored, with prior samples.
        batch_size=32,
        ema_rate=float(numbers["ema"]),
    )
    batches = {"real": numbers["x_real"], "source": numbers["x0"]}
    arguments = (state.create(variables, optimizer), Constants((), prior.params), batches, 5)
    end, metrics = jax.jit(steps.repeat_steps(step, 5))(rng.root_key(0), *arguments)
    np.testing.assert_allclose(metrics["loss"], numbers["losses"], rtol=1e-4)
    for of, name in ((end.variables, "y_final"), (end.ema_variables, "y_ema")):
        assert_close(net.apply(of, numbers["x0"][0]), numbers[name], 1e-4)

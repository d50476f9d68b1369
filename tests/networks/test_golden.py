"""The networks are numerically those of the reference implementation."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdrl_jax.networks import torch_shapes

NAMES = sorted(golden.NETWORKS)
# float32 rounding of x itself, which the difference of two positions cannot escape.
ROUNDING = 4e-7
# In float32 a rounding of x tips a few of the two million activations of resnet32 over LeakyReLU's
# kink, and each one moves the flow by up to 1e-3. In float64 none of them differs.
FLOW_TOLERANCE = {"float64": 1e-4, "float32": 3e-3}

load = functools.cache(golden.load)


def tolerance(name: str) -> float:
    return 1e-5 if name == "mlp" else 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_input_gradients_are_the_references(name):
    case = load(name)

    def total(x):
        out = case.net.apply(case.variables, x)
        return out.sum(), out

    grad, out = jax.jit(jax.grad(total, has_aux=True))(case.images("x"))

    assert_close(out, case.numbers["y"], tolerance(name))
    assert_close(grad, case.images("grad_x"), tolerance(name))


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradient_norms_are_the_references(name):
    case = load(name)
    fixed = {key: value for key, value in case.variables.items() if key != "params"}
    x = jnp.concatenate([case.images("x_real"), case.images("x")])

    @jax.jit
    def losses_and_norms(params):
        def losses(params):
            real, flowed = jnp.split(case.net.apply({"params": params, **fixed}, x), 2)
            return {key: loss(real, flowed) for key, loss in golden.LOSSES.items()}

        values, pullback = jax.vjp(losses, params)
        zeros = dict.fromkeys(values, jnp.float32(0))
        norms = {
            key: optax.tree.norm(pullback({**zeros, key: jnp.float32(1)})[0]) for key in values
        }
        return values, norms

    values, norms = losses_and_norms(case.variables["params"])

    for key in golden.LOSSES:
        assert_close(values[key], case.numbers[f"loss_{key}"], tolerance(name))
        assert_close(norms[key], case.numbers[f"gradnorm_{key}"], tolerance(name))


@pytest.mark.parametrize("dtype", FLOW_TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_flows_are_the_references(name, dtype):
    case = load(name)
    potentials = tuple(golden.POTENTIALS.values())
    slopes = [jax.vmap(jax.grad(potential)) for potential in potentials]

    # One program for all divergences: compiling takes longer than flowing.
    @jax.jit
    def flow(x, index, step_size):
        net = case.net.clone(dtype=dtype)

        def step(x, _):
            out, pullback = jax.vjp(lambda x: net.apply(case.variables, x), x)
            return x - step_size * pullback(jax.lax.switch(index, slopes, out))[0], None

        return jax.lax.scan(step, x, length=int(case.numbers["steps"]))[0]

    start = case.images("x")
    with jax.enable_x64(dtype == "float64"):
        for index, key in enumerate(golden.POTENTIALS):
            end = flow(jnp.asarray(start, dtype), index, jnp.asarray(case.numbers[f"eta_{key}"]))
            expected = case.images(f"flow_{key}")
            allowed = FLOW_TOLERANCE[dtype] * norm(expected - start)
            assert norm(end - expected) <= allowed + ROUNDING * np.sqrt(start.size), key


@pytest.mark.parametrize("name", NAMES)
def test_importing_expects_the_names_of_the_reference(name):
    features = load(name).images("x").shape[-1]

    assert torch_shapes(golden.NETWORKS[name], features) == golden.shapes(name)


def norm(array):
    return np.linalg.norm(np.asarray(array, np.float64))


def assert_close(actual, expected, relative):
    """Compares norms of differences: single elements near zero have no relative accuracy."""
    assert np.shape(actual) == np.shape(expected)
    assert norm(actual - expected) <= relative * norm(expected)

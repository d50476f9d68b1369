"""The public API gives the numbers of the reference implementation, on its multilayer perceptron.

Flow, losses and five steps of training; the weights follow from the names of the tensors.
"""

import functools
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdrl_jax as fdrl
from fdrl_jax import priors
from fdrl_jax.training import rng, state, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

GOLDEN = Path(__file__).parents[1] / "golden"
NET = fdrl.networks.MLP(hidden_sizes=(64, 64, 64, 64))
DIVERGENCES = ["Pearson", "KL", "JS", "logD"]
LOSSES = {"LSIF": "lsif", "LR": "lr", "KL": "ukl"}


@pytest.fixture(scope="module")
def variables():
    def weight(name, shape):
        random = np.random.RandomState(zlib.crc32(name.encode()))
        scale = 0.1 if name.endswith("bias") else np.sqrt(0.8 / np.prod(shape[1:]))
        return np.float32(scale * random.standard_normal(shape))

    shapes = json.loads((GOLDEN / "mlp.state_dict.json").read_text())
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    return fdrl.networks.from_torch_state_dict(NET, weights)


@functools.cache
def golden(name):
    return dict(np.load(GOLDEN / f"{name}.npz"))


def relative_error(actual, expected):
    """Relative error of norms, because single elements near zero have no relative accuracy."""
    assert np.shape(actual) == np.shape(expected)
    difference = np.float64(actual) - np.float64(expected)
    return np.linalg.norm(difference) / np.linalg.norm(np.float64(expected))


def test_the_networks_outputs_and_input_gradients(variables):
    case = golden("mlp")

    out, pullback = jax.vjp(lambda x: NET.apply(variables, x), case["x"])

    assert relative_error(out, case["y"]) < 1e-5
    assert relative_error(pullback(jnp.ones_like(out))[0], case["grad_x"]) < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_bregman_losses_and_the_norms_of_their_gradients(name, variables):
    case = golden("mlp")

    @jax.value_and_grad
    def loss(params):
        out_real, out_flowed = (NET.apply({"params": params}, case[k]) for k in ("x_real", "x"))
        return fdrl.bregman.loss(fdrl.bregman.get(LOSSES[name]), out_real, out_flowed)[0]

    value, gradient = jax.jit(loss)(variables["params"])

    assert relative_error(value, case[f"loss_{name}"]) < 1e-5
    assert relative_error(optax.tree.norm(gradient), case[f"gradnorm_{name}"]) < 1e-5


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_displacements_of_the_flow_for_all_divergences(name, variables):
    case = golden("mlp")
    potential = fdrl.first_variation(
        lambda x: NET.apply(variables, x),
        fdrl.divergences.get(name.lower()),
        output="ratio" if name == "Pearson" else "log_ratio",
    )

    moved = fdrl.flow(
        jax.random.key(0),
        case["x"],
        potential,
        num_steps=int(case["steps"]),
        step_size=case[f"eta_{name}"],
        noise_scale=0.0,
    )

    assert relative_error(moved - case["x"], case[f"flow_{name}"] - case["x"]) < 1e-4


@pytest.fixture(scope="module")
def trained(variables):
    """Five steps on the stored data and prior samples, which are in the host batch."""
    case = golden("train_mlp_LSIF_Pearson")
    prior = priors.batch("source")
    optimizer = optax.adam(float(case["lr"]))
    step = steps.make_train_step(
        Problem(
            estimator=Estimator(NET.apply),
            bregman=fdrl.bregman.get("lsif"),
            divergence=fdrl.divergences.get("pearson"),
            flow=FlowParams(int(case["K"]), step_size=float(case["eta"]), noise_scale=0.0),
            prior_sample=prior.sample,
        ),
        optimizer=optimizer,
        draw=lambda data, host_batch, key, positions: host_batch,
        batch_size=32,
        ema_rate=float(case["ema"]),
    )
    run = jax.jit(steps.repeat_steps(step, 5))
    batches = {"real": case["x_real"], "source": case["x0"]}
    start = state.create(variables, optimizer)
    return run(rng.root_key(0), start, Constants((), prior.params), batches, 5)


def test_the_losses_of_five_steps_of_training(trained):
    _, metrics = trained

    losses = golden("train_mlp_LSIF_Pearson")["losses"]
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("attribute", "expected"), [("variables", "y_final"), ("ema_variables", "y_ema")]
)
def test_the_outputs_of_the_trained_weights_and_of_their_moving_average(
    attribute, expected, trained
):
    case = golden("train_mlp_LSIF_Pearson")
    end, _ = trained

    out = NET.apply(getattr(end, attribute), case["x0"][0])

    assert relative_error(out, case[expected]) < 1e-4

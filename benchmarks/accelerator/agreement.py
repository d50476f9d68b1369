"""Outputs, gradients and flows of the device, against those of the CPU in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fdrl_jax as fdrl
from benchmarks.accelerator import speed
from benchmarks.estimators import FLOW
from fdrl_jax import networks

# Largest relative errors, by norm: rounding adds up over some 25 layers, and tips activations over
# the kink of LeakyReLU, where gradients jump. A wrong kernel is off by tens of percent.
BOUNDS = {"bfloat16": 0.1, "tensorfloat32": 2e-2, "float32": 2e-3}
_NUM_FLOW_STEPS = 5


def compare(name: str, precision: str, num_images: int) -> dict[str, float]:
    """Returns the relative errors of a network on the first device, by what was compared."""
    net, variables, images, wanted = _exact(name, num_images)
    with jax.default_matmul_precision(precision):
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        got = _computed(net.clone(dtype=dtype), variables, images.astype(np.float32))
    return {what: _error(got[what], wanted[what]) for what in wanted}


@functools.cache  # It takes longer than all that it is compared with.
def _exact(name: str, num_images: int) -> tuple[networks.ResNet, Any, np.ndarray, dict[str, Any]]:
    """Returns a network in float32, its weights, images, and what the CPU computes in float64."""
    network = speed.network(name)
    shape = (num_images, *network.shape)
    images = np.random.default_rng(0).uniform(-1.0, 1.0, shape)
    # The same weights for both, drawn where nothing is rounded to less than float32.
    net = networks.resnet(network.spec, use_bias=network.use_bias, dtype="float32")
    variables = jax.tree.map(
        np.asarray, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape[1:])))
    )
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        doubled = jax.tree.map(lambda a: a.astype(np.float64), variables)
        wanted = _computed(net.clone(dtype=jnp.float64), doubled, images)
    return net, variables, images, wanted


def _computed(net: networks.ResNet, variables: Any, images: np.ndarray) -> dict[str, Any]:
    def computed(variables: Any, x: jax.Array) -> dict[str, Any]:
        def loss(variables: Any) -> jax.Array:
            real, flowed = jnp.split(net.apply(variables, jnp.concatenate([x, -x])), 2)
            return fdrl.bregman.loss(fdrl.bregman.LR, real, flowed)[0]

        potential = fdrl.first_variation(
            lambda x: net.apply(variables, x), "kl", output="log_ratio"
        )

        # Without noise, which is drawn in the type of the images.
        flowed = fdrl.flow(
            jax.random.key(0),
            x,
            potential,
            num_steps=_NUM_FLOW_STEPS,
            step_size=FLOW["step_size"],
            noise_scale=0.0,
        )
        return {
            "outputs": net.apply(variables, x),
            "gradient to the images": fdrl.drift(x, potential),
            "gradient to the weights": jax.grad(loss)(variables),
            "displacement by the flow": flowed - x,
        }

    return jax.tree.map(np.asarray, jax.jit(computed)(variables, jnp.asarray(images)))


def _error(got: Any, wanted: Any) -> float:
    """Returns the relative error by norm of all arrays together."""
    one, other = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
        for tree in (got, wanted)
    )
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))

"""Measures the device at hand: speed, memory and errors of the paper's networks in each precision.

Run: python -m benchmarks.accelerator [--networks resnet32 ...] [--batch 64]
Errors are relative to the CPU in float64; the code is 1 if one exceeds the bound of its precision.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fdrl_jax as fdrl
from benchmarks.estimators import FLOW, NETWORKS, Network, alternate, ours
from experiments import devices
from fdrl_jax import networks

# Largest relative errors, by norm: rounding adds up over some 25 layers, and tips activations over
# the kink of LeakyReLU, where gradients jump. A wrong kernel is off by tens of percent.
BOUNDS = {"bfloat16": 0.1, "tensorfloat32": 2e-2, "float32": 2e-3}
SMALL = Network(networks.ResNetSpec(8, ((8, 2),)), (8, 8, 3))
_NUM_PRODUCTS = 10  # In one program, so that its start is not timed.
_NUM_EXACT_IMAGES, _NUM_EXACT_STEPS = 4, 5


def peak(precision: str, size: int, rounds: int) -> float:
    """Returns the FLOP/s of a product of square matrices."""
    dtype = _dtype(precision)

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, _NUM_PRODUCTS, lambda _, z: (x @ z).astype(dtype) * 1e-2, y)

    with jax.default_matmul_precision(precision):
        x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        seconds = alternate({"": lambda: jax.block_until_ready(products(x, y))}, rounds)
    return _NUM_PRODUCTS * 2.0 * size**3 / seconds[""]


def errors(network: Network, precision: str) -> dict[str, float]:
    """Returns relative errors by norm on the first device, against the CPU in float64."""
    images = np.random.default_rng(0).uniform(-1.0, 1.0, (_NUM_EXACT_IMAGES, *network.shape))
    # The same weights for both, drawn where nothing is rounded to less than float32.
    net = networks.resnet(network.spec, use_bias=network.use_bias, dtype="float32")
    variables = jax.tree.map(
        np.asarray, jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *network.shape)))
    )
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        doubled = jax.tree.map(lambda a: a.astype(np.float64), variables)
        wanted = _computed(net.clone(dtype=jnp.float64), doubled, images)
    with jax.default_matmul_precision(precision):
        found = _computed(net.clone(dtype=_dtype(precision)), variables, images.astype(np.float32))
    return {what: _relative_error(found[what], wanted[what]) for what in wanted}


def _computed(net: networks.ResNet, variables: Any, images: np.ndarray) -> dict[str, Any]:
    def computed(variables: Any, x: jax.Array) -> dict[str, Any]:
        def loss(variables: Any) -> jax.Array:
            real, flowed = jnp.split(net.apply(variables, jnp.concatenate([x, -x])), 2)
            return jnp.mean(jax.nn.softplus(real) + jax.nn.softplus(-flowed))

        potential = fdrl.first_variation(
            lambda x: net.apply(variables, x), "kl", output="log_ratio"
        )
        # Without noise, which is drawn in the type of the images.
        options = FLOW | {"num_steps": _NUM_EXACT_STEPS, "noise_scale": 0.0}
        flowed = fdrl.flow(jax.random.key(0), x, potential, **options)
        return {
            "outputs": net.apply(variables, x),
            "gradient to the images": fdrl.drift(x, potential),
            "gradient to the weights": jax.grad(loss)(variables),
            "displacement by the flow": flowed - x,
        }

    return jax.tree.map(np.asarray, jax.jit(computed)(variables, jnp.asarray(images)))


def _relative_error(found: Any, wanted: Any) -> float:
    one, other = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
        for tree in (found, wanted)
    )
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30))


def _dtype(precision: str) -> str:
    return "bfloat16" if precision == "bfloat16" else "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", default=["resnet32", "resnet64", "resnet128"], choices=NETWORKS)
    add("--precisions", nargs="+", default=list(BOUNDS), choices=BOUNDS)
    add("--batch", type=int, default=64, help="images of a flow step and of a training step")
    add("--rounds", type=int, default=5, help="timed calls of each")
    add("--small", action="store_true", help="a network of one block")
    arguments = parser.parse_args()
    devices.set_cpu_flags()
    chosen = {"small": SMALL} if arguments.small else {n: NETWORKS[n] for n in arguments.networks}
    batch, num_steps, size = (4, 3, 256) if arguments.small else (arguments.batch, 100, 8_192)
    print(f"{devices.describe_devices()}; {batch} images; {num_steps} flow steps per training step")
    for precision in arguments.precisions:
        flops = peak(precision, size, arguments.rounds)
        print(f"product of {size} x {size} matrices in {precision}: {flops / 1e12:.3g} TFLOP/s")
    print("\n| network | precision | flow step, ms | training step, ms | compilation, s |", end="")
    print(" temporary, MB | largest error |\n|---|---|---|---|---|---|---|")
    code = 0
    for name, network in chosen.items():
        for precision in arguments.precisions:
            with jax.default_matmul_precision(precision):
                contenders, found = ours(network, batch, precision, num_steps)
                seconds = alternate(contenders, arguments.rounds)
            wrong = errors(network, precision)
            print(
                f"| {name} | {precision} | {1e3 * seconds['flow'] / num_steps:.3g} | "
                f"{1e3 * seconds['train']:.3g} | {found['train_compile_seconds']:.0f} | "
                f"{found.get('train_temporary_bytes', 0) / 1e6:,.0f} | {max(wrong.values()):.1e} |",
                flush=True,
            )
            if not all(error <= BOUNDS[precision] for error in wrong.values()):  # Also NaN.
                code = 1
                print(f"wrong: {name} in {precision}: {wrong}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""How small may a device's batch be on a pod? On paper: bytes all-reduced against FLOPs, a step.

Run: python -m benchmarks.pods [--json=FILE]
A step all-reduces the float32 gradients once: a ring sends 2 (n - 1) / n times their bytes through
each device. It computes K drifts and one gradient of the loss for each image. FLOPs are XLA's
count of the unoptimised program; peaks and bandwidths are the vendors'. Nothing is taken to overlap
and the compute to run at its peak, which makes the communication look worse than it is; latency is
left out, some tens of microseconds beside steps of milliseconds.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fdrl_jax as fdrl
from benchmarks.sizes import SIZES
from experiments.files import write_json
from fdrl_jax import networks

NUM_FLOW_STEPS, EFFICIENCY = 100, 0.9
NAMES = ("resnet32", "resnet64", "resnet128")


class Device(NamedTuple):
    """Peak FLOP/s in bfloat16 (dense), and bytes a second that leave a device.

    Vendors state bandwidth in both directions together; a ring uses each at the same time.
    """

    name: str
    num: int
    peak: float
    bandwidth: float
    source: str


DEVICES = (
    Device(
        "8 x H100 SXM, NVLink",
        8,
        989e12,
        900e9 / 2,
        "NVIDIA H100 data sheet: 900 GB/s, 1,979 TFLOP/s sparse",
    ),
    Device(
        "256 x H100 SXM, 400 Gbit/s each",
        256,
        989e12,
        50e9,
        "NVIDIA DGX H100 data sheet: ConnectX-7, one a GPU",
    ),
    Device(
        "256 x TPU v5e, ICI",
        256,
        197e12,
        400e9 / 2,
        "cloud.google.com/tpu/docs/v5e: 1,600 Gbit/s, 197 TFLOP/s",
    ),
    Device(
        "512 x TPU v5p, ICI",
        512,
        459e12,
        1_200e9 / 2,
        "cloud.google.com/tpu/docs/v5p: 4,800 Gbit/s, 459 TFLOP/s",
    ),
)


def cost(name: str) -> dict[str, float]:
    """Returns parameters, and FLOPs for one image: of a drift, and of the gradient of the loss."""
    net = networks.resnet(name)
    shape = (1, SIZES[name], SIZES[name], 3)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def drift(variables: Any, x: jax.Array) -> jax.Array:
        return fdrl.drift(x, fdrl.first_variation(lambda x: net.apply(variables, x), "kl"))

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        both = jnp.concatenate([x, x])
        return fdrl.bregman.loss(fdrl.bregman.LR, *jnp.split(net.apply(variables, both), 2))[0]

    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "flops_drift": flops(drift, variables, x),
        "flops_gradient": flops(jax.grad(loss), variables, x),
    }


def flops(function: Any, *arguments: Any) -> float:
    # As accelerators run it: on CPU, Winograd's convolutions have fewer.
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    return float(lowered.cost_analysis()["flops"])


def flops_step(of: dict[str, float]) -> float:
    """Returns FLOPs for one image: of a train step."""
    return NUM_FLOW_STEPS * of["flops_drift"] + of["flops_gradient"]


def smallest_batch(of: dict[str, float], device: Device) -> dict[str, float]:
    """Returns times of a step with one image a device, and the batch of the wanted efficiency."""
    sent = 2.0 * (device.num - 1) / device.num * 4.0 * of["parameters"]
    communication, computation = sent / device.bandwidth, flops_step(of) / device.peak
    # b c / (b c + t) >= e, with c the time of an image and t that of the all-reduce.
    return {
        "all_reduce_microseconds": 1e6 * communication,
        "compute_microseconds_an_image": 1e6 * computation,
        "smallest_batch": EFFICIENCY / (1.0 - EFFICIENCY) * communication / computation,
    }


def main() -> None:
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    path = parser.parse_args().json
    results = {}
    for name in NAMES:
        of = cost(name)
        results[name] = {**of, **{d.name: smallest_batch(of, d) for d in DEVICES}}
        print(
            f"{name}: {of['parameters']:,} parameters, {4e-6 * of['parameters']:.1f} MB of "
            f"gradients; {flops_step(of) / 1e12:.3f} TFLOP an image and step (K = {NUM_FLOW_STEPS})"
        )
        for device in DEVICES:
            found = results[name][device.name]
            print(
                f"  {device.name:34s} all-reduce {found['all_reduce_microseconds']:7.1f} us, "
                f"{found['compute_microseconds_an_image']:8.1f} us an image: "
                f"{EFFICIENCY:.0%} from {found['smallest_batch']:.3f} images a device"
            )
    if path:
        write_json(path, results)


if __name__ == "__main__":
    main()

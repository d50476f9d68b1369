"""Estimates the smallest batch per device on a pod, from communication and computation per step.

Run: python -m benchmarks.pods [--json=FILE]
A step all-reduces the float32 gradients once, and a ring sends 2 (n - 1) / n times their bytes
through each device. The step computes K drifts and one gradient of the loss per image. FLOPs are
XLA's count for the unoptimised program; peaks and bandwidths are those of the vendors. The estimate
assumes no overlap, and computation at its peak, which makes communication look worse than it is. It
ignores latency, some tens of microseconds in steps of milliseconds.
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
    """Peak FLOP/s in bfloat16 (dense), and outgoing bytes per second of a device.

    Vendors state the sum over both directions, but a ring uses both at the same time.
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
        "NVIDIA DGX H100 data sheet: ConnectX-7, one per GPU",
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
    """Returns the number of parameters, and the FLOPs per image of a drift and of a gradient."""
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
    # As accelerators compute it; Winograd's convolutions on CPU need fewer.
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    return float(lowered.cost_analysis()["flops"])


def flops_step(of: dict[str, float]) -> float:
    """Returns the FLOPs of a train step per image."""
    return NUM_FLOW_STEPS * of["flops_drift"] + of["flops_gradient"]


def smallest_batch(of: dict[str, float], device: Device) -> dict[str, float]:
    """Returns the times of a step with one image per device, and the batch for the efficiency."""
    sent = 2.0 * (device.num - 1) / device.num * 4.0 * of["parameters"]
    communication, computation = sent / device.bandwidth, flops_step(of) / device.peak
    # b c / (b c + t) >= e, with c the time per image and t the time of the all-reduce.
    return {
        "all_reduce_microseconds": 1e6 * communication,
        "compute_microseconds_per_image": 1e6 * computation,
        "smallest_batch": EFFICIENCY / (1.0 - EFFICIENCY) * communication / computation,
    }


def main() -> None:
    """Prints one table per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    path = parser.parse_args().json
    results = {}
    for name in NAMES:
        of = cost(name)
        results[name] = {**of, **{d.name: smallest_batch(of, d) for d in DEVICES}}
        print(
            f"{name}: {of['parameters']:,} parameters, {4e-6 * of['parameters']:.1f} MB of "
            f"gradients; {flops_step(of) / 1e12:.3f} TFLOP per image (K = {NUM_FLOW_STEPS})"
        )
        for device in DEVICES:
            found = results[name][device.name]
            print(
                f"  {device.name:34s} all-reduce {found['all_reduce_microseconds']:7.1f} us, "
                f"{found['compute_microseconds_per_image']:8.1f} us per image: "
                f"{EFFICIENCY:.0%} from {found['smallest_batch']:.3f} images per device"
            )
    if path:
        write_json(path, results)


if __name__ == "__main__":
    main()

"""Times of a flow step and a training step, and the peak that a matrix product reaches."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.budget import Scale
from benchmarks.estimators import NETWORKS, Network, ours
from fdrl_jax import networks

_SMALL = Network(networks.ResNetSpec(8, ((8, 2),)), (8, 8, 3))


def network(name: str) -> Network:
    """Returns a network of the paper, or the "small" one."""
    return _SMALL if name == "small" else NETWORKS[name]


def peak(precision: str, size: int, rounds: int) -> float:
    """Returns the FLOP/s of a product of square matrices."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    num = 10  # In one program, so that its start is not timed.

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, num, lambda _, z: (x @ z).astype(dtype) * 1e-2, y)

    with jax.default_matmul_precision(precision):
        x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        seconds = _seconds(lambda: jax.block_until_ready(products(x, y)), rounds)
    return num * 2.0 * size**3 / seconds


def measure(name: str, precision: str, scale: Scale) -> dict[str, float]:
    """Times flow and training step of a network on the first device."""
    with jax.default_matmul_precision(precision):
        contenders, found = ours(network(name), scale.batch_size, precision, scale.num_flow_steps)
        for what, run in contenders.items():
            found[f"{what}_seconds"] = _seconds(run, scale.rounds)
    found["flow_step_seconds"] = found["flow_seconds"] / scale.num_flow_steps
    return found


def _seconds(run: Callable[[], Any], rounds: int) -> float:
    """Returns the least time of a call: what else runs on the machine only adds to it."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)

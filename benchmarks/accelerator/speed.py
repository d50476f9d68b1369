"""Times of a flow step and a training step, the peak of a matrix product, and how large all is."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.estimators import NETWORKS, Network, ours
from fdrl_jax import networks

_SMALL = Network(networks.ResNetSpec(8, ((8, 2),)), (8, 8, 3))


class Scale(NamedTuple):
    """How large everything is."""

    networks: tuple[str, ...]  # Names in the paper's table; "small" has one block.
    precisions: tuple[str, ...]  # Of the computation, the most important one first.
    batch_size: int  # Images of a flow step and of a training step.
    num_flow_steps: int  # Of a timed flow, and of a training step.
    num_exact_images: int  # In the comparison with float64.
    matrix_size: int  # Side of the matrices whose product gives the peak.
    rounds: int  # Timed calls of each function.
    torch_compile: tuple[bool, ...]  # With and without it; it takes minutes on a CPU.
    config: str  # What is trained at the end,
    changes: dict[str, object]  # with these settings.
    num_samples: int  # In the picture.
    min_training_seconds: float  # That training gets if the other parts took too long.


FULL = Scale(
    networks=("resnet32", "resnet64", "resnet128", "resnet64_shallow"),
    precisions=("bfloat16", "tensorfloat32", "float32"),
    batch_size=64,
    num_flow_steps=100,
    num_exact_images=4,
    matrix_size=8_192,
    rounds=5,
    torch_compile=(False, True),
    config="cifar10",
    changes={"log.every_steps": 20, "checkpoint.every_steps": 200, "train.steps_per_dispatch": 20},
    num_samples=100,
    min_training_seconds=60.0,
)
SMALL = Scale(
    networks=("small",),
    precisions=("float32",),
    batch_size=4,
    num_flow_steps=3,
    num_exact_images=2,
    matrix_size=256,
    rounds=2,
    torch_compile=(False,),
    config="digits:tiny",
    changes={"train.num_steps": 4},
    num_samples=16,
    min_training_seconds=3_600.0,
)


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
        seconds = least_seconds(lambda: jax.block_until_ready(products(x, y)), rounds)
    return num * 2.0 * size**3 / seconds


def measure(name: str, precision: str, scale: Scale) -> dict[str, float]:
    """Times flow and training step of a network on the first device."""
    with jax.default_matmul_precision(precision):
        contenders, found = ours(network(name), scale.batch_size, precision, scale.num_flow_steps)
        for what, run in contenders.items():
            found[f"{what}_seconds"] = least_seconds(run, scale.rounds)
    found["flow_step_seconds"] = found["flow_seconds"] / scale.num_flow_steps
    return found


def least_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Returns the least time of a call: what else runs on the machine only adds to it."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)

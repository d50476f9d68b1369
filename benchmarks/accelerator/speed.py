"""Times of a flow step and a train step, as shares of the peak that a matrix product reaches."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fdrl_jax as fdrl
from benchmarks.accelerator.budget import Scale
from benchmarks.sizes import SIZES
from experiments.planning import hlo, work
from fdrl_jax import networks
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

FLOW = {"step_size": 3.0, "noise_scale": 0.01}
_SMALL = networks.ResNetSpec(8, ((8, 2),))


def spec(name: str) -> networks.ResNetSpec:
    """Returns the layers of a network of the paper, or of the "small" one."""
    return _SMALL if name == "small" else networks.SPECS[name]


def network(name: str, precision: str) -> networks.ResNet:
    """Returns a network that computes in bfloat16 or float32; TF32 is a way to multiply float32."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    return networks.resnet(spec(name), dtype=dtype)


def image_shape(name: str) -> tuple[int, int, int]:
    """Returns the shape of the images that a network is for."""
    size = SIZES.get(name, 8)
    return (size, size, 3)


def peak(precision: str, size: int, rounds: int) -> float:
    """Returns the FLOP/s of a product of square matrices."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    num = 10  # In one program, so that its start is not timed.

    @jax.jit
    def products(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, num, lambda _, z: (x @ z).astype(dtype) * 1e-2, y)

    with jax.default_matmul_precision(precision):
        x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
        return num * 2.0 * size**3 / _seconds(products, (x, y), rounds)


def measure(name: str, precision: str, scale: Scale) -> dict[str, float]:
    """Times flow and train step of a network on the first device."""
    shape, net = image_shape(name), network(name, precision)
    x = jax.random.uniform(jax.random.key(1), (scale.batch_size, *shape), minval=-1.0)
    variables = jax.jit(net.init)(jax.random.key(0), x[:1])
    optimizer = optax.adam(1e-4)
    problem = Problem(
        Estimator.from_network(net),
        fdrl.bregman.LR,
        fdrl.divergences.KL,
        FlowParams(scale.num_flow_steps, **FLOW),
        fdrl.priors.uniform(shape).sample,
    )
    step = fdrl.training.steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=lambda data, host_batch, key, positions: {"real": data},
        batch_size=scale.batch_size,
    )
    state = fdrl.training.state.create(dict(variables), optimizer)
    keys = fdrl.training.rng.example_keys(
        fdrl.training.rng.root_key(0), fdrl.training.rng.Stream.FLOW, jnp.arange(scale.batch_size)
    )

    def flow(keys: jax.Array, variables: Any, x: jax.Array) -> jax.Array:
        potential = problem.potential(variables)
        return fdrl.flow(keys, x, potential, num_steps=scale.num_flow_steps, **FLOW)

    found = {}
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "flow": (flow, (keys, variables, x)),
        "train": (step, (fdrl.training.rng.root_key(0), state, Constants(x, ()))),
    }
    with jax.default_matmul_precision(precision):
        for what, (function, arguments) in programs.items():
            started = time.perf_counter()
            lowered = jax.jit(function).lower(*arguments)
            compiled = lowered.compile()
            found[f"{what}_compile_seconds"] = time.perf_counter() - started
            found[f"{what}_seconds"] = _seconds(compiled, arguments, scale.rounds)
            found[f"{what}_flops"] = work.flops(hlo.parse(lowered.as_text(dialect="hlo")))
            memory = compiled.memory_analysis()
            if memory is not None:
                found[f"{what}_temporary_bytes"] = int(memory.temp_size_in_bytes)
    found["flow_step_seconds"] = found["flow_seconds"] / scale.num_flow_steps
    return found


@functools.cache
def describe() -> str:
    """Returns the device and the version of JAX."""
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"


def _seconds(function: Callable[..., Any], arguments: tuple[Any, ...], rounds: int) -> float:
    """Returns the least time of a call: what else runs on the machine only adds to it."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)

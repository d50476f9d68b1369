"""The paper's estimators: flow step, train step, sampling, compilation; beside PyTorch eager.

Run: python -m benchmarks.estimators [--networks resnet32,...] [--batches 8,...]
  [--precisions float32,bfloat16] [--torch_compile] [--json FILE]
A step of the flow is timed inside the compiled loop. Rates are in GFLOP/s by the compiler's count,
which sees the work that Winograd's algorithm leaves; shares are of a matrix product of the same
precision, timed in the same rounds. PyTorch, in float32, is optional, and so is its compiler.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fdrl_jax as fdrl
from benchmarks.sizes import SIZES
from benchmarks.timing import alternate
from experiments.files import write_json
from experiments.machine import xla_flags
from fdrl_jax import networks
from fdrl_jax.problem import Constants, Estimator, FlowParams, Problem

NUM_FLOW_STEPS, PEAK_SIZE = 5, 2_048
_FLOW = {"step_size": 3.0, "noise_scale": 0.01}


def ours(name: str, batch: int, precision: str) -> tuple[dict[str, Callable[[], Any]], dict]:
    """Returns our contenders, and figures of the compiler."""
    size = SIZES[name]
    net = networks.resnet(name, dtype=precision)
    shape = (size, size, 3)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    x = jax.random.uniform(jax.random.key(1), (batch, *shape), minval=-1.0)

    def potential(variables: Any) -> Callable[[jax.Array], jax.Array]:
        return fdrl.first_variation(lambda x: net.apply(variables, x), "kl")

    def run_flow(variables: Any, x: jax.Array) -> jax.Array:
        key = jax.random.key(2)
        return fdrl.flow(key, x, potential(variables), num_steps=NUM_FLOW_STEPS, **_FLOW)

    prior = fdrl.priors.uniform(shape)
    optimizer = optax.adam(1e-4)
    problem = Problem(
        Estimator.from_network(net),
        fdrl.bregman.LR,
        fdrl.divergences.KL,
        FlowParams(NUM_FLOW_STEPS, **_FLOW),
        prior.sample,
    )
    step = fdrl.steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=lambda data, host_batch, key, positions: {"real": data},
        batch_size=batch,
    )
    state = fdrl.state.create(dict(variables), optimizer)
    root = fdrl.rng.root_key(0)
    started = time.perf_counter()
    flow = jax.jit(run_flow).lower(variables, x).compile()
    compile_seconds = time.perf_counter() - started
    train = jax.jit(step).lower(root, state, Constants(x, ()), None).compile()
    one = jax.jit(lambda v, x: fdrl.drift(x, potential(v))).lower(variables, x).compile()
    peak = jnp.ones((PEAK_SIZE, PEAK_SIZE), precision)
    product = jax.jit(jnp.matmul)
    memory = train.memory_analysis()
    figures = {
        "flops_flow_step": one.cost_analysis()["flops"],
        "compile_flow_seconds": compile_seconds,
        "train_step_temporary_bytes": memory.temp_size_in_bytes,
    }
    contenders = {
        "flow": lambda: jax.block_until_ready(flow(variables, x)),
        "train": lambda: jax.block_until_ready(train(root, state, Constants(x, ()), None)),
        "product": lambda: jax.block_until_ready(product(peak, peak)),
    }
    return contenders, figures


def pytorch(name: str, batch: int, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Returns PyTorch's contenders, in float32: eager, and by its compiler if asked for."""
    import torch

    from benchmarks import torch_resnet

    x = torch.rand(batch, 3, SIZES[name], SIZES[name]) * 2.0 - 1.0
    contenders: dict[str, Callable[[], Any]] = {}

    def enter(label: str, net: Any) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

        def flow() -> torch.Tensor:
            return torch_resnet.flow(net, x.clone(), NUM_FLOW_STEPS, **_FLOW)

        contenders[f"{label}_flow"] = flow
        contenders[f"{label}_train"] = lambda: torch_resnet.train_step(net, optimizer, x, flow())

    enter("pytorch", torch_resnet.Network(networks.SPECS[name]))
    if compiled:
        enter("torch_compile", torch.compile(torch_resnet.Network(networks.SPECS[name])))
    return contenders


def measure(
    name: str, batch: int, precision: str, rounds: int, torch_compile: bool = False
) -> dict[str, Any]:
    """Times one network; all contenders take turns."""
    contenders, figures = ours(name, batch, precision)
    if precision == "float32":
        try:
            contenders |= pytorch(name, batch, torch_compile)
        except ImportError:
            print("PyTorch is not installed; only our own times are measured")
    seconds = alternate(contenders, rounds)
    flow_step = seconds["flow"] / NUM_FLOW_STEPS
    rate = figures["flops_flow_step"] / flow_step
    peak = 2.0 * PEAK_SIZE**3 / seconds["product"]
    result = {
        "network": name,
        "batch": batch,
        "precision": precision,
        "flow_step_ms": 1e3 * flow_step,
        "train_step_ms": 1e3 * seconds["train"],
        "sampling_ms_per_image_at_120_steps": 1e3 * flow_step * 120 / batch,
        "flow_gflops": rate / 1e9,
        "share_of_product": rate / peak,
        **figures,
    }
    for contender in contenders.keys() - {"flow", "train", "product"}:
        ours_alike = contender.rpartition("_")[2]
        result[f"{contender}_over_ours"] = seconds[contender] / seconds[ours_alike]
    return result


def main() -> None:
    """Prints the figures of each network, and writes them as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet32", help="names, with commas between")
    parser.add_argument("--batches", default="8", help="images of a step")
    parser.add_argument("--precisions", default="float32", help="float32, bfloat16")
    parser.add_argument("--torch_compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    xla_flags.set_cpu_flags()
    lists = (arguments.networks, arguments.batches, arguments.precisions)
    results = []
    for name, batch, precision in itertools.product(*(text.split(",") for text in lists)):
        results.append(
            measure(name, int(batch), precision, arguments.rounds, arguments.torch_compile)
        )
        for key, value in results[-1].items():
            print(f"{key:36s} {value if isinstance(value, str) else format(value, ',.4g')}")
        print()
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()

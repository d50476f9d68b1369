"""Times of estimators (flow step, training step, compilation), next to PyTorch eager.

Run: python -m benchmarks.estimators [--networks resnet32 ...] [--batch 8] [--torch_python PATH]
PyTorch runs in a process of its own. The contenders take turns; figures are medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fdrl_jax as fdrl
from experiments import devices
from fdrl_jax import networks
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants, Estimator, Problem


class Network(NamedTuple):
    spec: networks.ResNetSpec
    shape: tuple[int, int, int]  # Of an image, [H, W, C].
    use_bias: bool = False


NETWORKS = {f"resnet{n}": Network(networks.SPECS[f"resnet{n}"], (n, n, 3)) for n in (32, 64, 128)}
NETWORKS["mnist"] = Network(
    networks.ResNetSpec(32, ((64, 2), (64, 2), (128, 1))), (28, 28, 1), True
)
NUM_FLOW_STEPS = 5
FLOW = {"step_size": 3.0, "noise_scale": 0.01}


def ours(
    network: Network, batch: int, precision: str, num_flow_steps: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Returns our contenders, "flow" and "train", and figures of the compiler."""
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    net = networks.resnet(network.spec, dtype=dtype, use_bias=network.use_bias)
    x = jax.random.uniform(jax.random.key(1), (batch, *network.shape), minval=-1.0)
    variables, optimizer = jax.jit(net.init)(jax.random.key(0), x[:1]), optax.adam(1e-4)
    problem = Problem(
        fdrl.FDRL(num_steps=num_flow_steps, **FLOW),
        Estimator.from_network(net),
        fdrl.priors.uniform(network.shape).sample,
    )
    options = {"optimizer": optimizer, "batch_size": batch, "draw": lambda data, *_: {"real": data}}
    step = fdrl.training.steps.make_train_step(problem, **options)
    state, root = fdrl.training.state.create(dict(variables), optimizer), rng.root_key(0)
    keys = rng.example_keys(root, rng.Stream.FLOW, jnp.arange(batch))

    def flow(keys: jax.Array, variables: Any, x: jax.Array) -> jax.Array:
        potential = problem.potential(variables)
        return fdrl.flow(keys, x, potential, num_steps=num_flow_steps, **FLOW)

    programs = {
        "flow": (flow, (keys, variables, x)),
        "train": (step, (root, state, Constants(x, ()), None)),
    }
    contenders, figures = {}, {}
    for what, (function, arguments) in programs.items():
        started = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        figures[f"{what}_compile_seconds"] = time.perf_counter() - started
        if memory := compiled.memory_analysis():
            figures[f"{what}_temporary_bytes"] = memory.temp_size_in_bytes
        contenders[what] = lambda c=compiled, a=arguments: jax.block_until_ready(c(*a))
    return contenders, figures


@contextmanager
def pytorch(
    python: str, network: Network, batch: int, precision: str
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Starts PyTorch in another process and yields its contenders; none if it is not installed."""
    settings = {"stem": network.spec.stem, "blocks": network.spec.blocks, "bias": network.use_bias}
    settings |= {"shape": network.shape, "batch": batch, "precision": precision}
    settings |= {"flow": {"num_steps": NUM_FLOW_STEPS, **FLOW}}
    settings["device"] = "cuda" if jax.default_backend() == "gpu" else "cpu"
    command = [python, str(Path(__file__).with_name("torch_resnet.py")), json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, **pipes) as process:
        version = process.stdout.readline().strip()
        if not version:
            print("PyTorch did not start; only fdrl_jax is timed", file=sys.stderr)
            yield {}
            return

        def ask(what: str) -> None:
            process.stdin.write(f"{what}\n")
            if process.stdout.readline().strip() != "done":
                raise RuntimeError("the process of PyTorch has ended; see its error above")

        print(f"PyTorch {version}")
        yield {f"pytorch_{what}": lambda what=what: ask(what) for what in ("flow", "train")}
        process.stdin.close()


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Returns median seconds per call by name; in turns, as the speed of the machine changes."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(name: str, batch: int, precision: str, python: str, rounds: int) -> dict[str, float]:
    """Times a network; `python` is one that has PyTorch."""
    network = NETWORKS[name]
    # Accelerators multiply float32 arrays as a run does, see `experiments.devices`.
    used = None if jax.default_backend() == "cpu" else precision
    with jax.default_matmul_precision(used):
        contenders, figures = ours(network, batch, precision, NUM_FLOW_STEPS)
    with pytorch(python, network, batch, precision) as other:
        seconds = alternate(contenders | other, rounds)
    figures |= {f"{what}_ms": 1e3 * seconds[what] for what in contenders}
    figures["flow_step_ms"] = figures.pop("flow_ms") / NUM_FLOW_STEPS
    for what in contenders if other else ():
        figures[f"pytorch_{what}_over_ours"] = seconds[f"pytorch_{what}"] / seconds[what]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", default=["resnet32"], choices=NETWORKS)
    add("--batch", type=int, default=8, help="images per step")
    add("--precision", default="float32", choices=("float32", "bfloat16"))
    add("--torch_python", default=sys.executable, help="a Python that has PyTorch")
    add("--rounds", type=int, default=5, help="timed calls of each")
    given = parser.parse_args()
    devices.set_cpu_flags(bfloat16=given.precision == "bfloat16")
    print(devices.describe_devices())
    for name in given.networks:
        print(f"\n{name}, batch {given.batch}, {given.precision}")
        found = measure(name, given.batch, given.precision, given.torch_python, given.rounds)
        for key, value in found.items():
            print(f"{key:24s} {value:,.4g}")


if __name__ == "__main__":
    main()

"""Times of the paper's estimators (flow step, train step, compilation), next to PyTorch eager.

Run: python -m benchmarks.estimators [--networks resnet32,...] [--batches 8,...]
  [--precisions float32,bfloat16] [--torch_python PATH] [--torch_compile] [--json FILE]
A step of the flow is timed inside the compiled loop. PyTorch runs in a separate process, with
--torch_python or this Python, in the same precision. The contenders take turns, and the figures are
medians and their ratios. XLA reads its flags only once, so run each precision in a separate command
if the figures matter.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fdrl_jax as fdrl
from benchmarks.sizes import SIZES
from benchmarks.timing import alternate
from experiments.files import write_json
from experiments.machine import processor, xla_flags
from fdrl_jax import networks
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

NUM_FLOW_STEPS = 5
_FLOW = {"step_size": 3.0, "noise_scale": 0.01}


def ours(name: str, batch: int, precision: str) -> tuple[dict[str, Callable[[], Any]], dict]:
    """Returns our contenders, and figures of the compiler."""
    size = SIZES[name]
    net = networks.resnet(name, dtype=precision)
    shape = (size, size, 3)
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    x = jax.random.uniform(jax.random.key(1), (batch, *shape), minval=-1.0)

    def potential(variables: Any) -> Callable[[jax.Array], jax.Array]:
        return fdrl.first_variation(lambda x: net.apply(variables, x), "kl", output="log_ratio")

    def run_flow(variables: Any, x: jax.Array) -> jax.Array:
        key = jax.random.key(2)
        prepared = networks.prepare(net, variables)
        return fdrl.flow(key, x, potential(prepared), num_steps=NUM_FLOW_STEPS, **_FLOW)

    prior = fdrl.priors.uniform(shape)
    optimizer = optax.adam(1e-4)
    problem = Problem(
        Estimator.from_network(net),
        fdrl.bregman.LR,
        fdrl.divergences.KL,
        FlowParams(NUM_FLOW_STEPS, **_FLOW),
        prior.sample,
    )
    step = fdrl.training.steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=lambda data, host_batch, key, positions: {"real": data},
        batch_size=batch,
    )
    state = fdrl.training.state.create(dict(variables), optimizer)
    root = fdrl.training.rng.root_key(0)
    started = time.perf_counter()
    flow = jax.jit(run_flow).lower(variables, x).compile()
    compile_seconds = time.perf_counter() - started
    train = jax.jit(step).lower(root, state, Constants(x, ()), None).compile()
    memory = train.memory_analysis()
    figures = {
        "compile_flow_seconds": compile_seconds,
        "train_step_temporary_bytes": memory.temp_size_in_bytes,
    }
    contenders = {
        "flow": lambda: jax.block_until_ready(flow(variables, x)),
        "train": lambda: jax.block_until_ready(train(root, state, Constants(x, ()), None)),
    }
    return contenders, figures


@contextmanager
def pytorch(
    python: str,
    spec: networks.ResNetSpec,
    size: int,
    batch: int,
    precision: str,
    compiled: bool,
    *,
    device: str = "cpu",
    num_flow_steps: int = NUM_FLOW_STEPS,
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Starts PyTorch in another process and yields its contenders; none if it is not installed."""
    settings = {
        "stem": spec.stem,
        "blocks": spec.blocks,
        "size": size,
        "batch": batch,
        "precision": precision,
        "compiled": compiled,
        "device": device,
        "flow": {"num_steps": num_flow_steps, **_FLOW},
    }
    program = Path(__file__).with_name("torch_resnet.py")
    command = [python, str(program), json.dumps(settings)]
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


def measure(
    name: str, batch: int, precision: str, rounds: int, torch_python: str, torch_compile: bool
) -> dict[str, Any]:
    """Times one network; all contenders take turns."""
    contenders, figures = ours(name, batch, precision)
    spec, size = networks.SPECS[name], SIZES[name]
    with pytorch(torch_python, spec, size, batch, precision, torch_compile) as other:
        seconds = alternate(contenders | other, rounds)
    result = {
        "network": name,
        "batch": batch,
        "precision": precision,
        "flow_step_ms": 1e3 * seconds["flow"] / NUM_FLOW_STEPS,
        "train_step_ms": 1e3 * seconds["train"],
        "sampling_ms_per_image_at_120_steps": 1e3 * seconds["flow"] / NUM_FLOW_STEPS * 120 / batch,
        **figures,
    }
    for contender in other:
        result[f"{contender}_ms"] = 1e3 * seconds[contender]
        result[f"{contender}_over_ours"] = (
            seconds[contender] / seconds[contender.removeprefix("pytorch_")]
        )
    return result


def main() -> None:
    """Prints the figures of each network, and writes them to `--json` if given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="resnet32", help="names, separated by commas")
    parser.add_argument("--batches", default="8", help="images per step")
    parser.add_argument("--precisions", default="float32", help="float32, bfloat16")
    parser.add_argument("--torch_python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--torch_compile", action="store_true", help="compile PyTorch's network")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    xla_flags.set_cpu_flags(bfloat16="bfloat16" in arguments.precisions)
    print(f"processor: {processor.describe()}; jax {jax.__version__}")
    print(f"oneDNN kernels: {'on' if xla_flags.uses_onednn() else 'off'}")
    lists = (arguments.networks, arguments.batches, arguments.precisions)
    results = []
    for name, batch, precision in itertools.product(*(text.split(",") for text in lists)):
        results.append(
            measure(
                name,
                int(batch),
                precision,
                arguments.rounds,
                arguments.torch_python,
                arguments.torch_compile,
            )
        )
        for key, value in results[-1].items():
            print(f"{key:36s} {value if isinstance(value, str) else format(value, ',.4g')}")
        print()
    if arguments.json:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()

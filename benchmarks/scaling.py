"""Measures the cost of a train step by number of devices, K, batch, image size and width.

Run: python -m benchmarks.scaling [--rounds 7] [--json=FILE] [--picture=FILE.png]
Devices: the same global batch is split over 1, 2, 4 and 8 fake CPU devices, each number in a
separate process. The devices share the cores, so an ideal mapping takes the same time, and extra
time is overhead. A plain `jit` is timed for comparison. The profiler reports how long a device is
in the all-reduce, and how much of that it waits for other devices, which on shared cores do not
arrive at the same time.
Cost: one factor changes and the others are fixed. The slope is that of a line through the
logarithms.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fdrl_jax as fdrl
from benchmarks.timing import alternate
from benchmarks.trace import thread_seconds
from experiments.files import write_json
from experiments.machine import xla_flags
from fdrl_jax import networks
from fdrl_jax.training import parallel, rng, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

DEVICES = (1, 2, 4, 8)
BASE = {"K": 10, "batch": 32, "size": 16, "width": 16}
FACTORS = {
    "K": (5, 10, 20, 40),
    "batch": (8, 16, 32, 64, 128),
    "size": (8, 16, 32),
    "width": (8, 16, 32, 64),
}
_FLAG = "--xla_force_host_platform_device_count"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contender")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, help="also plot the cost to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure_devices(arguments.rounds)))
        return
    results = {"devices": [in_process(num, arguments.rounds) for num in DEVICES]}
    xla_flags.set_cpu_flags()
    results["cost"] = {name: measure_cost(name, arguments.rounds) for name in FACTORS}
    print_tables(results)
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.picture:
        draw(results["cost"], arguments.picture)


def problem(K: int, size: int, width: int) -> tuple[Problem, Any, dict[str, Any]]:
    """Returns a problem with a residual network, its optimizer and its first state."""
    shape = (size, size, 3)
    net = networks.resnet(networks.ResNetSpec(width, ((width, 1), (2 * width, 2)), 1))
    variables = dict(jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape))))
    optimizer = optax.adam(1e-4)
    of = Problem(
        Estimator.from_network(net),
        fdrl.bregman.LR,
        fdrl.divergences.KL,
        FlowParams(K, step_size=1.0, noise_scale=0.01),
        fdrl.priors.uniform(shape).sample,
    )
    return of, optimizer, fdrl.training.state.create(variables, optimizer)


def train_step(of: Problem, optimizer: Any, batch: int, size: int, axis: str | None) -> Any:
    def draw(data: Any, host_batch: Any, key: jax.Array, positions: jax.Array) -> dict[str, Any]:
        keys = rng.example_keys(key, rng.Stream.DATA, positions)
        return {"real": jax.vmap(lambda k: jax.random.uniform(k, (size, size, 3)))(keys)}

    return steps.make_train_step(
        of, optimizer=optimizer, draw=draw, batch_size=batch, axis_name=axis
    )


def timed(function: Any, *arguments: Any) -> Callable[[], Any]:
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def measure_cost(factor: str, rounds: int) -> dict[str, Any]:
    """Times train steps in which one factor changes, and fits the slope of the logarithms."""
    contenders = {}
    for value in FACTORS[factor]:
        setting = {**BASE, factor: value}
        of, optimizer, state = problem(setting["K"], setting["size"], setting["width"])
        step = train_step(of, optimizer, setting["batch"], setting["size"], axis=None)
        contenders[str(value)] = timed(step, rng.root_key(0), state, Constants((), ()))
    seconds = list(alternate(contenders, rounds).values())
    return {
        "values": FACTORS[factor],
        "milliseconds": [1e3 * s for s in seconds],
        "slope": slope(FACTORS[factor], seconds),
    }


def slope(values: Any, seconds: Any) -> float:
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def in_process(num_devices: int, rounds: int) -> dict[str, Any]:
    """Measures in a process with this number of fake devices."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    xla_flags.set_cpu_flags(environment)
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_FLAG}={num_devices}"
    command = [sys.executable, "-m", "benchmarks.scaling", "--child", f"--rounds={rounds}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_devices(rounds: int) -> dict[str, Any]:
    """Times the mapped and the plain step, and profiles the all-reduce of the mapped step."""
    batch, size = BASE["batch"], BASE["size"]
    of, optimizer, state = problem(BASE["K"], size, BASE["width"])
    local = parallel.local_batch_size(batch)
    mapped = parallel.map_sampler(train_step(of, optimizer, local, size, parallel.AXIS))
    plain = train_step(of, optimizer, batch, size, axis=None)
    replicated, constants, key = parallel.replicate(state), Constants((), ()), rng.root_key(0)

    def run() -> None:
        jax.block_until_ready(mapped(key, replicated, constants, None))

    seconds = alternate({"mapped": run, "plain": timed(plain, key, state, constants)}, rounds)
    num = parallel.num_devices()
    # The reduction lasts until the last device arrives, so waiting is counted separately.
    profile = thread_seconds(run, "all-reduce", "Rendezvous")
    return {
        "devices": num,
        "steps_per_second": 1.0 / seconds["mapped"],
        "images_per_second": batch / seconds["mapped"],
        "over_plain_jit": seconds["mapped"] / seconds["plain"],
        "all_reduce_share": profile["all-reduce"] / num / seconds["mapped"],
        "waiting_share": profile["Rendezvous"] / num / seconds["mapped"],
    }


def print_tables(results: dict[str, Any]) -> None:
    """Prints both tables."""
    print("devices  steps/s  images/s  x plain jit  in all-reduce  of that waiting")
    for row in results["devices"]:
        print(
            f"{row['devices']:7d} {row['steps_per_second']:8.2f} {row['images_per_second']:9.1f} "
            f"{row['over_plain_jit']:12.2f} {row['all_reduce_share']:14.2%} "
            f"{row['waiting_share']:15.2%}"
        )
    print(f"\nmilliseconds of a train step; the others as in {BASE}")
    for name, cost in results["cost"].items():
        pairs = zip(cost["values"], cost["milliseconds"], strict=True)
        row = ", ".join(f"{value}: {time:.3g}" for value, time in pairs)
        print(f"{name:6s} {row:56s} slope {cost['slope']:.2f}")


def draw(cost: dict[str, Any], path: Path) -> None:
    """Draws the time of a step against each factor, on logarithmic axes."""
    from experiments.pictures import style

    figure, axes = style.panels(len(cost), size=2.6)
    for panel, (name, of) in zip(axes, cost.items(), strict=True):
        values, times = np.array(of["values"]), np.array(of["milliseconds"])
        fit = np.exp(np.polyval(np.polyfit(np.log(values), np.log(times), 1), np.log(values)))
        panel.loglog(values, fit, color=style.PRIOR, label=f"slope {of['slope']:.2f}")
        panel.loglog(values, times, "o", color=style.SAMPLES)
        panel.set(xlabel=name, xticks=values, xticklabels=values)
        panel.minorticks_off()
        panel.set_yticks(times, [f"{time:,.0f}" for time in times])
        panel.legend()
    axes[0].set_ylabel("ms of a train step")
    style.save(figure, path)


if __name__ == "__main__":
    main()

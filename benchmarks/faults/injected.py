"""Runs the program with an injected fault.

Run: python -m benchmarks.faults.injected clock=HOURS|memory=STEP|nan=STEP, then the flags of the
program.
"""

import contextlib
import dataclasses
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm.std

from experiments import build
from experiments.training import divergence, metrics_log


def main() -> None:
    inject(sys.argv.pop(1))
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)


def inject(fault: str) -> None:
    """Injects a fault into this process: `clock=HOURS`, `memory=STEP` or `nan=STEP`."""
    name, _, value = fault.partition("=")
    if name == "clock":
        let_clock_jump(float(value))
    elif name == "memory":
        exhaust_memory(int(value))
    else:
        build.experiment = with_nan(build.experiment, int(value))


def let_clock_jump(hours: float) -> None:
    """Starts with a wrong clock, and makes it wrong in the other direction at the first log.

    It does not jump during a save, because Orbax uses this clock for timeouts.
    """
    true_time, true_log, offset = time.time, metrics_log.json_lines, [3_600 * hours]

    def wrong_time() -> float:
        return true_time() + offset[0]

    @contextlib.contextmanager
    def log(*arguments: Any) -> Iterator[metrics_log.Writer]:
        def write(step: int, record: metrics_log.Record) -> None:
            offset[0] = -3_600 * hours
            true_write(step, record)

        with true_log(*arguments) as true_write:
            yield write

    time.time = wrong_time
    tqdm.std.time = wrong_time  # It has already imported the function.
    metrics_log.json_lines = log


def exhaust_memory(step: int) -> None:
    """Raises JAX's out-of-memory error at a step."""
    true_find = divergence.find_trouble

    def find_trouble(numbers: np.ndarray, *arguments: Any) -> str | None:
        if numbers[-1] >= step:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return true_find(numbers, *arguments)

    divergence.find_trouble = find_trouble


def with_nan(make_experiment: Any, step: int) -> Any:
    """Returns a builder of experiments in which the batch of a step contains NaN."""

    def make(*arguments: Any, **options: Any) -> build.Experiment:
        return poison(make_experiment(*arguments, **options), step)

    return make


def poison(experiment: build.Experiment, step: int) -> build.Experiment:
    """Puts NaN into the first example of the batch that an uninterrupted run uses at a step."""
    position = (step - 1) * experiment.settings["train.batch_size"]
    draw = experiment.source.draw

    def poisoned(arrays: Any, host_batch: Any, key: Any, positions: Any) -> Any:
        batch = draw(arrays, host_batch, key, positions)
        is_hit = (positions == position).reshape(-1, *(1,) * (batch["real"].ndim - 1))
        return {**batch, "real": jnp.where(is_hit, jnp.nan, batch["real"])}

    source = experiment.source._replace(draw=poisoned)
    return dataclasses.replace(experiment, source=source)


if __name__ == "__main__":
    main()

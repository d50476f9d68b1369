"""The program with a fault.

Run: python -m benchmarks.faults.injected clock=HOURS|nan=STEP, then the program's own flags.
"""

import dataclasses
import runpy
import sys
import time
from typing import Any

import jax.numpy as jnp
import tqdm.std

from experiments import build
from experiments.training import metrics_log


def main() -> None:
    name, _, value = sys.argv.pop(1).partition("=")
    if name == "clock":
        let_clock_jump(float(value))
    else:
        build.experiment = with_nan(build.experiment, int(value))
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)


def let_clock_jump(hours: float) -> None:
    """Starts with a clock that is wrong, and sets it as wrong to the other side at the first log.

    Not in the middle of a save: Orbax waits by this clock, and would give up.
    """
    true_time, true_write, offset = time.time, metrics_log.JsonLines.write, [3_600 * hours]

    def wrong_time() -> float:
        return true_time() + offset[0]

    def write(log: Any, step: int, record: metrics_log.Record) -> None:
        offset[0] = -3_600 * hours
        true_write(log, step, record)

    time.time = wrong_time
    tqdm.std.time = wrong_time  # It has the function already.
    metrics_log.JsonLines.write = write


def with_nan(make_experiment: Any, step: int) -> Any:
    """Returns a builder of experiments in which the batch of a step has a number that is none."""

    def make(*arguments: Any, **options: Any) -> build.Experiment:
        experiment = make_experiment(*arguments, **options)
        return poison(experiment, step)

    return make


def poison(experiment: build.Experiment, step: int) -> build.Experiment:
    """Puts NaN into the first example of the batch that an undisturbed run takes at a step."""
    make, position = experiment.make_train_step, (step - 1) * experiment.batch_size
    draw = make.keywords["draw"]

    def poisoned(arrays: Any, host_batch: Any, key: Any, positions: Any) -> Any:
        batch = draw(arrays, host_batch, key, positions)
        is_hit = (positions == position).reshape(-1, *(1,) * (batch["real"].ndim - 1))
        return {**batch, "real": jnp.where(is_hit, jnp.nan, batch["real"])}

    keywords = {**make.keywords, "draw": poisoned}
    return dataclasses.replace(
        experiment, make_train_step=lambda problem: make.func(problem, **keywords)
    )


if __name__ == "__main__":
    main()

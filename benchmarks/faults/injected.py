"""The program with a fault inside it: python -m benchmarks.faults.injected clock|nan=STEP FLAGS."""

import itertools
import runpy
import sys
import time
from typing import Any

import jax.numpy as jnp
import tqdm.std

from experiments import build


def main() -> None:
    name, _, value = sys.argv.pop(1).partition("=")
    if name == "clock":
        let_clock_jump()
    else:
        build.experiment = with_nan(build.experiment, int(value))
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)


def let_clock_jump() -> None:
    """Sets the clock an hour on, two back, three on, ... whenever somebody looks at it."""
    true_time, turns = time.time, itertools.count(1)

    def jumping() -> float:
        turn = next(turns)
        return true_time() + 3_600 * turn * (-1) ** turn

    time.time = jumping
    tqdm.std.time = jumping  # It has the function already.


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
    return experiment._replace(make_train_step=lambda problem: make.func(problem, **keywords))


if __name__ == "__main__":
    main()

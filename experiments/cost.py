"""Estimates of what a run costs, before it starts: operations, time and disk."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.build import Experiment
from fdrl_jax import drift, parallel

_CPU_FLOPS_PER_SECOND = 2e11  # Two cores in float32; rough, only to warn of days of work.
# The loss and its gradient process data and flowed samples, which is twice the batch of a flow
# step, and differentiate with respect to the parameters as well as the input.
_GRADIENT_IN_FLOW_STEPS = 3.0
SECONDS_PER_DAY = 86_400
# A step is not timed again once it has run for this long in all.
_FLOW_STEP_SECONDS, _TRAIN_STEP_SECONDS = 1.0, 2.0


class StepCost(NamedTuple):
    """Seconds per flow step and per train step, and whether the train step was timed as a whole."""

    flow_step: float
    train_step: float
    is_measured: bool


def days_on_cpu(experiment: Experiment) -> float | None:
    """Returns roughly how many days the training takes on a CPU, or `None` on other devices."""
    if jax.default_backend() != "cpu":
        return None
    lowered = jax.jit(_drift_of(experiment)).lower(*_drift_shapes(experiment))
    analysis = lowered.cost_analysis() or {}
    if "flops" not in analysis:
        return None
    settings = experiment.settings
    flow_steps = settings["flow.num_steps"] + _GRADIENT_IN_FLOW_STEPS
    total = settings["train.num_steps"] * flow_steps * float(analysis["flops"])
    return total / _CPU_FLOPS_PER_SECOND / SECONDS_PER_DAY


def time_flow_step(experiment: Experiment) -> float:
    """Compiles one flow step of a device's part of the train batch and returns its seconds."""
    variables, x = _drift_shapes(experiment)
    arrays = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), variables)
    points = jnp.zeros(x.shape, x.dtype)
    compiled = jax.jit(_drift_of(experiment)).lower(arrays, points).compile()
    jax.block_until_ready(compiled(arrays, points))
    seconds = _timed(compiled, lambda: (arrays, points), 10, _FLOW_STEP_SECONDS)
    return statistics.median(seconds)


def time_train_step(
    compiled: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]]
) -> float:
    """Returns the seconds of a compiled train step: the shortest of three, or of one slow one.

    The step may take over the buffers of its arguments, so they are made again each time.
    """
    return min(_timed(compiled, arguments, 3, _TRAIN_STEP_SECONDS))


def estimate_train_step(flow_step_seconds: float, num_flow_steps: int) -> float:
    """Estimates the seconds of a train step from those of a flow step."""
    return flow_step_seconds * (num_flow_steps + _GRADIENT_IN_FLOW_STEPS)


def _timed(
    function: Callable[..., Any],
    arguments: Callable[[], tuple[Any, ...]],
    most: int,
    budget_seconds: float,
) -> list[float]:
    """Returns the seconds of up to `most` calls, and of no further one after the budget."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < most and sum(seconds) < budget_seconds):
        made = arguments()
        started = time.perf_counter()
        jax.block_until_ready(function(*made))
        seconds.append(time.perf_counter() - started)
    return seconds


def _drift_of(experiment: Experiment) -> Callable[[Any, jax.Array], jax.Array]:
    return lambda variables, x: drift(x, experiment.problem.potential(variables))


def _drift_shapes(experiment: Experiment) -> tuple[Any, jax.ShapeDtypeStruct]:
    batch_size = parallel.local_batch_size(experiment.settings["train.batch_size"])
    shape = (batch_size, *experiment.source.event_shape)
    return experiment.state_shapes().variables, jax.ShapeDtypeStruct(shape, jnp.float32)

"""Mode dry_run: settings, devices, shapes, memory and time of a run, without training."""

import statistics
import time
from typing import Any

import jax

from experiments import build
from experiments.build import Experiment
from experiments.machine.hardware import describe_devices
from experiments.request import Request
from experiments.training import memory
from fdrl_jax import parallel, steps

_FEW, _MORE = 1, 11  # Flow steps of the two timed train steps; the time is linear in them.


def run(request: Request) -> None:
    """Resolves a config and prints what its run would need.

    The step of the run is compiled, and memory is the compiler's figure for it. Time is measured on
    train steps with few flow steps, on a scratch state, and extrapolated linearly to K.
    """
    experiment = build.experiment(request.config, fit_prior=False)
    for key, value in experiment.settings.items():
        print(f"  {key:32s} {value}")
    print(describe_devices())
    variables = jax.eval_shape(experiment.init_state).variables
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    num = parallel.num_devices()
    print(f"network: {count:,} parameters, input {experiment.source.event_shape}")
    print(
        f"batch: {experiment.batch_size}, {experiment.batch_size // num} on each of {num} devices"
    )
    compiled, seconds = _compile(experiment, experiment.problem.flow.num_steps)
    print(f"compilation: {seconds:.1f} s")
    print(f"memory of the compiled step: {_memory(compiled)}")
    few, more = (_time_step(experiment, k) for k in (_FEW, _MORE))
    flow_step = max((more - few) / (_MORE - _FEW), 0.0)
    step = few + flow_step * (experiment.problem.flow.num_steps - _FEW)
    print(
        f"time: {flow_step * 1e3:.3g} ms a flow step, {step * 1e3:.3g} ms a train step (estimated)"
    )
    print(f"run: {experiment.num_steps:,} steps, about {_duration(step * experiment.num_steps)}")


def _compile(experiment: Experiment, num_flow_steps: int) -> tuple[Any, float]:
    started = time.perf_counter()
    flow = experiment.problem.flow._replace(num_steps=num_flow_steps)
    train_step = experiment.make_train_step(experiment.problem._replace(flow=flow))
    run_steps = parallel.map_steps(steps.repeat_steps(train_step, experiment.steps_per_dispatch))
    compiled = run_steps.lower(*_arguments(experiment)).compile()
    return compiled, time.perf_counter() - started


def _arguments(experiment: Experiment) -> tuple[Any, ...]:
    with experiment.open_feed(0) as feed:
        host_batches = feed.take(1)
    return (
        experiment.key,
        parallel.replicate(experiment.init_state()),
        parallel.replicate(experiment.constants),
        host_batches,
        1,  # Steps.
        0,  # Batches skipped.
    )


def _time_step(experiment: Experiment, num_flow_steps: int) -> float:
    compiled, _ = _compile(experiment, num_flow_steps)
    seconds = []
    for _ in range(5):
        arguments = _arguments(experiment)  # Anew: the step takes the state's buffers.
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _memory(compiled: Any) -> str:
    stats = compiled.memory_analysis()
    if stats is None:
        return "not told by this backend"
    needed = int(stats.argument_size_in_bytes) + memory.bytes_beside_arguments(stats)
    return f"{needed / 2**20:,.1f} MiB a device"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"

"""Mode dry_run: estimates what a run would cost, without training."""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments import advice, build, settings
from experiments.build import Experiment
from experiments.command_line import Command
from experiments.data import load_if_given
from experiments.machine import hardware, memory
from experiments.modes import creation
from experiments.planning import process, report, targets
from experiments.settings import Settings
from fdrl_jax.training import parallel

_MAX_TIMED_SECONDS = 4.0  # Longer train steps are not timed but estimated.
# A step is not timed again once it has run for this long in all.
_FLOW_STEP_SECONDS, _TRAIN_STEP_SECONDS = 1.0, 2.0
_REPORT_SECONDS = 20.0  # For metrics and pictures, in addition to the samples.


def run_mode(command: Command) -> None:
    """Prints time, memory and disk space of a run, and the settings that differ from the defaults.

    Compiles the real train step and reports the memory that the compiler computes for it. Times a
    flow step, and also a train step unless it takes too long. With `--target`, compiles train step
    and sampler for other hardware, which need not be present, and times nothing.
    """
    if command.flags["target"]:
        _plan(command)
        return
    wanted, source = creation.settings_and_data(command, blank=True)
    experiment = build.experiment(hardware.prepare(wanted), source)
    training = creation.check(experiment)
    if parallel.is_first_process():
        print("compiling and timing one step", file=sys.stderr)
    with training.open_feed(0) as take:
        host_batches = take(1)
    started = time.perf_counter()
    run_steps = parallel.map_steps(training.repeated_step())
    compiled = run_steps.lower(*training.blank_arguments(host_batches, 1)).compile()
    compile_seconds = time.perf_counter() - started
    flow_step = _time_flow_step(experiment)
    # The step takes over the buffers of its arguments, so they are made again each time.
    arguments = functools.partial(training.blank_arguments, host_batches, 1)
    train_step, how = _time_train_step(compiled, arguments, wanted, flow_step)
    if not parallel.is_first_process():
        return
    shapes = experiment.state_shapes()
    num_steps, batch_size = wanted["train.num_steps"], wanted["train.batch_size"]
    training_seconds = train_step * num_steps
    flow_steps = wanted["flow.num_steps"] + wanted["flow.num_refine_steps"]
    batches = wanted["evaluate.num_samples"] / batch_size
    evaluation_seconds = batches * flow_steps * flow_step + _REPORT_SECONDS
    total = compile_seconds + training_seconds + evaluation_seconds
    first = compile_seconds + train_step * min(wanted["checkpoint.every_steps"], num_steps)
    checkpoints = memory.num_bytes(shapes) * (wanted["checkpoint.keep"] + 1)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.variables["params"]))
    print(f"whole run: about {duration(total)}")
    print(f"  compilation: {duration(compile_seconds)}")
    print(f"  {num_steps:,} train steps: {duration(training_seconds)}")
    print(f"  evaluation and report: {duration(evaluation_seconds)}")
    if wanted["prior.name"] == "data_dependent":
        print("  not included: fitting the prior to the data")
    print(f"time to the first checkpoint: {duration(first)}")
    print(f"train step: {train_step * 1e3:.3g} ms ({how})")
    print(f"flow step: {flow_step * 1e3:.3g} ms")
    stats, used = compiled.memory_analysis(), "not reported by this backend"
    if stats is not None:
        needed = int(stats.argument_size_in_bytes) + memory.bytes_besides_arguments(stats)
        used = f"{needed / 2**20:,.1f} MiB"
    print(f"memory per device: {used}")
    print(f"disk: {checkpoints / 2**20:,.0f} MiB of checkpoints")
    print(hardware.describe_devices())
    dtype = experiment.network.dtype
    print(f"network: {count:,} parameters, input {source.event_shape}, {dtype}")
    print(f"batch: {batch_size}, {parallel.local_batch_size(batch_size)} per device")
    if source.kind == "images":
        print(advice.noise(wanted)[0])
    _print_settings(wanted)


def _print_settings(wanted: Settings) -> None:
    print("settings that differ from the defaults:")
    for key, value in settings.changed(wanted).items():
        print(f"  {key:32s} {value}")


def _plan(command: Command) -> None:
    """Prints cost and memory of a run on other hardware."""
    target = targets.parse(command.flags["target"])
    wanted = creation.wanted_settings(command)
    if command.config_for is not None:
        shape = load_if_given(creation.data_options(wanted, command.data_dir))[0].event_shape
        wanted = creation.fitted(command, wanted, target.platform, shape)
    print(
        f"compiling for {target.text}: up to a minute for GPUs, several minutes for TPUs",
        flush=True,
    )
    found = process.run(wanted, command.data_dir, target)
    print(*report.lines(report.Plan(found["settings"], target, found)), sep="\n")
    _print_settings(wanted)


def duration(seconds: float) -> str:
    """Formats a duration in the unit that a reader expects."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3_600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def timed(
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


def _time_train_step(
    compiled: Any, arguments: Callable[[], tuple[Any, ...]], wanted: Settings, flow_step: float
) -> tuple[float, str]:
    """Returns the seconds of a train step, and whether they are measured or estimated."""
    estimated = flow_step * (wanted["flow.num_steps"] + advice.GRADIENT_IN_FLOW_STEPS)
    # With several processes, the compiled step does not accept the arrays of one.
    if estimated > _MAX_TIMED_SECONDS or jax.process_count() > 1:
        return estimated, "estimated from the flow step"
    return min(timed(compiled, arguments, 3, _TRAIN_STEP_SECONDS)), "measured"


def _time_flow_step(experiment: Experiment) -> float:
    lowered, shapes = advice.lower_flow_step(experiment)
    zeros, compiled = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), lowered.compile()
    jax.block_until_ready(compiled(*zeros))
    return statistics.median(timed(compiled, lambda: zeros, 10, _FLOW_STEP_SECONDS))

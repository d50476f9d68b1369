"""Reads the data, compiles and times a training step, and prints what a run would cost."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import devices, experiment, settings, train
from experiments.command import Command
from experiments.data.source import describe_shape
from experiments.evaluate import num_drawn
from experiments.evaluation import references
from fdrl_jax.training import parallel

_REPORT_SECONDS = 20.0  # For metrics and pictures, in addition to the samples.
# The loss has twice the batch of a flow step, and gradients of the parameters as well.
_GRADIENT_IN_FLOW_STEPS = 3.0
_MAX_FLOW_STEPS = 10  # A longer flow is not timed but estimated from this many steps.


def dry_run(command: Command) -> None:
    """Prints time, memory and data of a run, and its settings; refuses what training would."""
    wanted, source = train.settings_and_data(command)
    used = devices.resolved(wanted)
    devices.multiply_in(used.precision)
    train.check(used, source)
    reference = references.of(source)  # Reads the held-out images, as training does.
    flow, num_steps = used.flow, used.train.num_steps
    timed_steps = min(flow.num_steps, _MAX_FLOW_STEPS)
    shorter = dataclasses.replace(used, flow=dataclasses.replace(flow, num_steps=timed_steps))
    model = experiment.build(shorter, source)
    if devices.is_first_process():
        print("compiling and timing one step", file=sys.stderr)
    with model.open_feed(0) as take:
        host_batches = take(1)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), model.state_shapes())
    constants = parallel.replicate(model.constants)

    def arguments() -> tuple[Any, ...]:
        # The step takes over the buffers of the state, so they are made again each time.
        return model.root_key, parallel.replicate(zeros), constants, host_batches, 1

    run_steps = parallel.map_steps(model.repeated_step())
    started = time.perf_counter()
    stats = run_steps.lower(*arguments()).compile().memory_analysis()
    compiling = time.perf_counter() - started
    flow_step = _timed(run_steps, arguments) / (timed_steps + _GRADIENT_IN_FLOW_STEPS)
    if not devices.is_first_process():
        return
    num = num_drawn(used, reference, used.evaluate.num_samples)
    train_step = flow_step * (flow.num_steps + _GRADIENT_IN_FLOW_STEPS)
    length = flow.num_steps + flow.num_refine_steps
    evaluation = num / used.train.batch_size * length * flow_step + _REPORT_SECONDS
    memory = "not reported by this backend"
    if stats is not None:
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        needed = stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs
        memory = f"{needed / 2**20:,.1f} MiB"
    count = sum(leaf.size for leaf in jax.tree.leaves(zeros.variables["params"]))
    print(f"whole run: about {duration(compiling + train_step * num_steps + evaluation)}")
    print(f"  {num_steps:,} training steps of {train_step:.3g} s")
    print(f"  evaluation of {num:,} samples and report: {duration(evaluation)}")
    if used.prior.name == "data_dependent":
        print("  not included: fitting the prior to the data")
    print(f"memory per device: {memory}")
    print(devices.describe_devices())
    print(f"data: {source.name}, {describe_shape(source.event_shape)}")
    if source.kind == "images":
        print(f"  {source.num_train:,} training images, {len(source.classes)} classes")
        print(f"  {source.num_held_out:,} held-out images")
        if few := references.too_few(source.num_held_out):
            print(f"  {few}; add images, or a folder 'test' of such images")
    print(f"network: {count:,} parameters, {model.network.dtype}")
    print("settings that differ from the defaults:")
    for key, value in settings.changed(wanted).items():
        print(f"  {key:32s} {value}")


def duration(seconds: float) -> str:
    """Formats a duration in the unit that a reader expects."""
    for length, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _timed(function: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]]) -> float:
    """Returns the seconds of the fastest of three calls, of which none starts after a second."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < 1.0):
        made = arguments()
        started = time.perf_counter()
        jax.block_until_ready(function(*made))
        seconds.append(time.perf_counter() - started)
    return min(seconds)

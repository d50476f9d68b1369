"""Mode dry_run: estimates what a run would cost, without training."""

import sys
import time
from typing import Any

import jax

from experiments import advice, build, cost, settings
from experiments.build import Experiment, Training
from experiments.command_line import Command
from experiments.machine import hardware, memory
from experiments.modes.creation import check, settings_and_data, wanted_settings
from experiments.planning import process, report, targets
from experiments.settings import Settings
from fdrl_jax import parallel

_MAX_TIMED_SECONDS = 4.0  # Longer train steps are not timed but estimated.
_REPORT_SECONDS = 20.0  # For metrics and pictures, in addition to the samples.


def run_mode(command: Command) -> None:
    """Prints time, memory and disk space of a run, and the settings that differ from the defaults.

    Compiles the real train step and reports the memory that the compiler computes for it. Times a
    flow step, and also a train step unless it takes too long. With `--target`, compiles train step
    and sampler for other hardware, which need not be present, and times nothing.
    """
    if command.flags["target"]:
        wanted = wanted_settings(command)
        target = targets.parse(command.flags["target"])
        print(f"compiling for {target.text}: up to a minute for GPUs, several minutes for TPUs")
        sys.stdout.flush()
        found = process.run(wanted, command.data_dir, target)
        print(*report.lines(report.Plan(found["settings"], target, found)), sep="\n")
        _print_settings(wanted)
        return
    wanted, source = settings_and_data(command, blank=True)
    experiment = build.experiment(hardware.prepare(wanted), source)
    training = check(experiment)
    with training.open_feed(0) as take:
        host_batches = take(1)
    started = time.perf_counter()
    run_steps = parallel.map_steps(training.repeated_step())
    compiled = run_steps.lower(*training.blank_arguments(host_batches, 1)).compile()
    compile_seconds = time.perf_counter() - started
    step = _time(training, experiment, compiled, host_batches)
    _print_answer(experiment, compiled, compile_seconds, step)
    if source.kind == "images":
        print(advice.noise_warning(wanted) or advice.describe_noise(wanted))
    _print_settings(wanted)


def _print_settings(wanted: Settings) -> None:
    print("settings that differ from the defaults:")
    for key, value in settings.changed(wanted).items():
        print(f"  {key:32s} {value}")


def _print_answer(
    experiment: Experiment, compiled: Any, compile_seconds: float, step: cost.StepCost
) -> None:
    wanted = experiment.settings
    training_seconds = step.train_step * wanted["train.num_steps"]
    flow_steps = wanted["flow.num_steps"] + wanted["flow.num_refine_steps"]
    batches = wanted["evaluate.num_samples"] / wanted["train.batch_size"]
    evaluation_seconds = batches * flow_steps * step.flow_step + _REPORT_SECONDS
    total = compile_seconds + training_seconds + evaluation_seconds
    first = compile_seconds + step.train_step * min(
        wanted["checkpoint.every_steps"], wanted["train.num_steps"]
    )
    size = memory.num_bytes(experiment.state_shapes())
    how = "measured" if step.is_measured else "estimated from the flow step"
    params = experiment.state_shapes().variables["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    num = parallel.num_devices()
    print(f"whole run: about {duration(total)}")
    print(f"  compilation: {duration(compile_seconds)}")
    print(f"  {wanted['train.num_steps']:,} train steps: {duration(training_seconds)}")
    print(f"  evaluation and report: {duration(evaluation_seconds)}")
    if wanted["prior.name"] == "data_dependent":
        print("  not included: fitting the prior to the data")
    print(f"time to the first checkpoint: {duration(first)}")
    print(f"train step: {step.train_step * 1e3:.3g} ms ({how})")
    print(f"flow step: {step.flow_step * 1e3:.3g} ms")
    stats, used = compiled.memory_analysis(), "not reported by this backend"
    if stats is not None:
        needed = int(stats.argument_size_in_bytes) + memory.bytes_besides_arguments(stats)
        used = f"{needed / 2**20:,.1f} MiB"
    print(f"memory per device: {used}")
    print(f"disk: {size * (wanted['checkpoint.keep'] + 1) / 2**20:,.0f} MiB of checkpoints")
    print(hardware.describe_devices())
    print(
        f"network: {count:,} parameters, input {experiment.source.event_shape}, "
        f"{experiment.network.dtype}"
    )
    print(f"batch: {wanted['train.batch_size']}, {wanted['train.batch_size'] // num} per device")


def duration(seconds: float) -> str:
    """Formats a duration in the unit that a reader expects."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3_600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _time(
    training: Training, experiment: Experiment, compiled: Any, host_batches: Any
) -> cost.StepCost:
    flow_step = cost.time_flow_step(experiment)
    estimate = cost.estimate_train_step(flow_step, training.settings["flow.num_steps"])
    if estimate > _MAX_TIMED_SECONDS:
        return cost.StepCost(flow_step, estimate, is_measured=False)
    measured = cost.time_train_step(compiled, lambda: training.blank_arguments(host_batches, 1))
    return cost.StepCost(flow_step, measured, is_measured=True)

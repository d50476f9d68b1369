"""Reads the data, compiles and times a training step, and prints what a run would cost."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import experiment, precision, settings, train
from experiments.command import Command
from experiments.data import Source, describe_shape
from experiments.evaluation import references
from experiments.experiment import Experiment
from experiments.settings import Settings
from fdrl_jax import drift
from fdrl_jax.training import parallel
from fdrl_jax.training.problem import Estimator

_MAX_TIMED_SECONDS = 4.0  # Longer training steps are not timed but estimated.
# A step is not timed again once it has run for this long in all.
_FLOW_STEP_SECONDS, _TRAIN_STEP_SECONDS = 1.0, 2.0
_REPORT_SECONDS = 20.0  # For metrics and pictures, in addition to the samples.
# The loss and its gradient process data and flowed samples, which is twice the batch of a flow
# step, and differentiate with respect to the parameters as well as the input.
_GRADIENT_IN_FLOW_STEPS = 3.0
_MAX_VARIANCE_RATIO = 4.0


def dry_run(command: Command) -> None:
    """Prints the data, time, memory and disk space of a run, and settings that are not defaults.

    Refuses what training would refuse. The memory is that which the compiler computes.
    """
    wanted, source = train.settings_and_data(command)
    model = experiment.build(precision.resolve(wanted), source)
    if parallel.is_first_process():
        print("compiling and timing one step", file=sys.stderr)
    with model.open_feed(0) as take:
        host_batches = take(1)
    run_steps = parallel.map_steps(model.repeated_step())
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), model.state_shapes())
    constants = experiment.on_devices(model.constants)

    def arguments() -> tuple[Any, ...]:
        # The step takes over the buffers of the state, so they are made again each time.
        return model.root_key, parallel.replicate(zeros), constants, host_batches, 1, 0

    started = time.perf_counter()
    compiled = run_steps.lower(*arguments()).compile()
    compile_seconds = time.perf_counter() - started
    flow_step = _time_flow_step(model)
    train_step, how = _time_train_step(compiled, arguments, wanted, flow_step)
    if not parallel.is_first_process():
        return
    num_steps, batch_size = wanted.train.num_steps, wanted.train.batch_size
    flow_steps = wanted.flow.num_steps + wanted.flow.num_refine_steps
    sampling = wanted.evaluate.num_samples / batch_size * flow_steps * flow_step
    whole = compile_seconds + train_step * num_steps + sampling + _REPORT_SECONDS
    first = compile_seconds + train_step * min(wanted.checkpoint.every_steps, num_steps)
    state = _num_bytes(zeros)
    count = sum(leaf.size for leaf in jax.tree.leaves(zeros.variables["params"]))
    stats, used = compiled.memory_analysis(), "not reported by this backend"
    if stats is not None:
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        needed = stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs
        used = _megabytes(int(needed))
    _print_data(wanted, source)
    print(f"whole run: about {duration(whole)}")
    print(f"  compilation: {duration(compile_seconds)}")
    print(f"  {num_steps:,} training steps: {duration(train_step * num_steps)}")
    print(f"  evaluation and report: {duration(sampling + _REPORT_SECONDS)}")
    if wanted.prior.name == "data_dependent":
        print("  not included: fitting the prior to the data")
    print(f"time to the first checkpoint: {duration(first)}")
    print(f"training step: {train_step * 1e3:.3g} ms ({how})")
    print(f"flow step: {flow_step * 1e3:.3g} ms")
    print(f"memory per device: {used}")
    print(f"disk: {_megabytes(state * (wanted.checkpoint.keep + 1))} of checkpoints", end="")
    if wanted.prior.name == "data_dependent":
        print(f", at most {_megabytes(_num_bytes(model.constants.prior))} of the prior", end="")
    print(f"\n{precision.describe_devices()}")
    dtype = model.network.dtype
    print(f"network: {count:,} parameters, input {source.event_shape}, {dtype}")
    print(f"batch: {batch_size}, {parallel.local_batch_size(batch_size)} per device")
    print("settings that differ from the defaults:")
    for key, value in settings.changed(wanted).items():
        print(f"  {key:32s} {value}")


def noise_balance(wanted: Settings) -> str:
    """Returns a line about the noise of flowed samples and of data, with advice if they differ.

    The estimator may otherwise distinguish them by their noise. The variances are on the scale
    [-1, 1]: flowed samples have the jitter of the data-dependent prior and the noise of K steps,
    `jitter + K nu^2`, and data have the dequantisation noise. The estimate ignores that the drift
    of the flow removes noise.
    """
    jitter = wanted.prior.jitter if wanted.prior.name == "data_dependent" else 0.0
    num_steps, data = wanted.flow.num_steps, wanted.data.dequantisation**2
    flowed = jitter + num_steps * wanted.flow.noise_scale**2
    line = f"noise (standard deviation): flowed samples {flowed**0.5:.3f}, data {data**0.5:.3f}"
    if flowed <= _MAX_VARIANCE_RATIO * data:
        return line
    balanced = (max(data - jitter, 0.0) / num_steps) ** 0.5 if num_steps else 0.0
    is_jitter = jitter > _MAX_VARIANCE_RATIO * data
    less = "a smaller prior.jitter" if is_jitter else f"flow.noise_scale={balanced:.2g}"
    return (
        f"{line}: the network may distinguish them by their noise and learn little else. Balanced "
        f"at K = {num_steps}: {less}, or a larger data.dequantisation"
    )


def duration(seconds: float) -> str:
    """Formats a duration in the unit that a reader expects."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3_600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def _print_data(wanted: Settings, source: Source) -> None:
    print(f"data: {source.name}, {describe_shape(source.event_shape)}")
    if source.kind == "points":
        return
    print(f"  {source.num_train:,} training images, {len(source.classes)} classes")
    print(f"  {source.num_held_out:,} held-out images")
    if few := references.too_few(source.num_held_out):
        print(f"  {few}; add images, or a folder 'test' of such images")
    print(f"  {noise_balance(wanted)}")


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


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


def _time_train_step(
    compiled: Any, arguments: Callable[[], tuple[Any, ...]], wanted: Settings, flow_step: float
) -> tuple[float, str]:
    """Returns the seconds of a training step, and whether they are measured or estimated."""
    estimated = flow_step * (wanted.flow.num_steps + _GRADIENT_IN_FLOW_STEPS)
    # With several processes, the compiled step does not accept the arrays of one.
    if estimated > _MAX_TIMED_SECONDS or jax.process_count() > 1:
        return estimated, "estimated from the flow step"
    return min(_timed(compiled, arguments, 3, _TRAIN_STEP_SECONDS)), "measured"


def _time_flow_step(model: Experiment) -> float:
    """Returns the seconds of a flow step of a device's part of the training batch.

    The variables are those that the flow prepares once, before its first step.
    """
    estimator, size = model.problem.estimator, model.settings.train.batch_size
    once = model.problem._replace(estimator=Estimator(estimator.apply))
    x = jnp.zeros((parallel.local_batch_size(size), *model.source.event_shape))
    shapes = jax.eval_shape(estimator.prepare, model.state_shapes().variables)
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    step = jax.jit(lambda variables, x: drift(x, once.potential(variables)))
    jax.block_until_ready(step(variables, x))
    return statistics.median(_timed(step, lambda: (variables, x), 10, _FLOW_STEP_SECONDS))

"""Reads the data, compiles and times a training step, and prints what a run would cost."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import draw, experiment, precision, settings, train
from experiments.command import Command
from experiments.data import describe_shape
from experiments.evaluation import references
from experiments.experiment import Experiment
from experiments.settings import Settings
from fdrl_jax import drift
from fdrl_jax.training import parallel

_MAX_TIMED_SECONDS = 4.0  # Longer training steps are not timed but estimated.
_REPORT_SECONDS = 20.0  # For metrics and pictures, in addition to the samples.
# The loss and its gradient process data and flowed samples, which is twice the batch of a flow
# step, and differentiate with respect to the parameters as well as the input.
_GRADIENT_IN_FLOW_STEPS = 3.0
_MAX_NOISE_RATIO = 2.0


def dry_run(command: Command) -> None:
    """Prints the data, time, memory and disk space of a run, and settings that are not defaults.

    Refuses what training would refuse. The memory is that which the compiler computes.
    """
    wanted, source = train.settings_and_data(command)
    used = precision.resolve(wanted)
    train.check_ratio(used, source, is_new=True)
    model = experiment.build(used, source)
    if parallel.is_first_process():
        print("compiling and timing one step", file=sys.stderr)
    with model.open_feed(0) as take:
        host_batches = take(1)
    run_steps = parallel.map_steps(model.repeated_step())
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), model.state_shapes())
    constants = parallel.replicate(model.constants)

    def arguments() -> tuple[Any, ...]:
        # The step takes over the buffers of the state, so they are made again each time.
        return model.root_key, parallel.replicate(zeros), constants, host_batches, 1, 0

    started = time.perf_counter()
    compiled = run_steps.lower(*arguments()).compile()
    compile_seconds = time.perf_counter() - started
    flow_step = _time_flow_step(model)
    train_step, how = flow_step * (wanted.flow.num_steps + _GRADIENT_IN_FLOW_STEPS), "estimated"
    # With several processes, the compiled step does not accept the arrays of one.
    if train_step <= _MAX_TIMED_SECONDS and jax.process_count() == 1:
        train_step, how = _timed(compiled, arguments), "measured"
    if not parallel.is_first_process():
        return
    num_steps, batch_size = wanted.train.num_steps, wanted.train.batch_size
    to_checkpoint = train_step * min(wanted.checkpoint.every_steps, num_steps)
    flow_steps = wanted.flow.num_steps + wanted.flow.num_refine_steps
    report = wanted.evaluate.num_samples / batch_size * flow_steps * flow_step + _REPORT_SECONDS
    saved = _num_bytes(zeros) * (wanted.checkpoint.keep + 1) + _num_bytes(model.constants.prior)
    count = sum(leaf.size for leaf in jax.tree.leaves(zeros.variables["params"]))
    stats, memory = compiled.memory_analysis(), "not reported by this backend"
    if stats is not None:
        outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
        needed = stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs
        memory = f"{needed / 2**20:,.1f} MiB"
    print(f"data: {source.name}, {describe_shape(source.event_shape)}")
    if source.kind == "images":
        print(f"  {source.num_train:,} training images, {len(source.classes)} classes")
        print(f"  {source.num_held_out:,} held-out images")
        if few := references.too_few(source.num_held_out):
            print(f"  {few}; add images, or a folder 'test' of such images")
        print(f"  {noise_balance(wanted)}")
    print(f"whole run: about {duration(compile_seconds + train_step * num_steps + report)}")
    print(f"  compilation: {duration(compile_seconds)}")
    print(f"  {num_steps:,} training steps: {duration(train_step * num_steps)}")
    print(f"  evaluation and report: {duration(report)}")
    if wanted.prior.name == "data_dependent":
        print("  not included: fitting the prior to the data")
    print(f"time to the first checkpoint: {duration(compile_seconds + to_checkpoint)}")
    print(f"training step: {train_step * 1e3:.3g} ms ({how})")
    print(f"flow step: {flow_step * 1e3:.3g} ms")
    print(f"memory per device: {memory}")
    print(f"disk: at most {saved / 2**20:,.1f} MiB of checkpoints and prior")
    print(precision.describe_devices())
    print(f"network: {count:,} parameters, input {source.event_shape}, {model.network.dtype}")
    print(f"batch: {batch_size}, {parallel.local_batch_size(batch_size)} per device")
    print("settings that differ from the defaults:")
    for key, value in settings.changed(wanted).items():
        print(f"  {key:32s} {value}")


def noise_balance(wanted: Settings) -> str:
    """Returns a line about the noise of flowed samples and of data, on the scale [-1, 1].

    Flowed samples have the variance `jitter + K nu^2`: that of the data-dependent prior and of the
    noise of K steps. The estimate ignores that the drift of the flow removes noise.
    """
    jitter = wanted.prior.jitter if wanted.prior.name == "data_dependent" else 0.0
    flowed = (jitter + wanted.flow.num_steps * wanted.flow.noise_scale**2) ** 0.5
    data = wanted.data.dequantisation
    line = f"noise (standard deviation): flowed samples {flowed:.3f}, data {data:.3f}"
    if flowed <= _MAX_NOISE_RATIO * data:
        return line
    return (
        f"{line}: the network may distinguish them by their noise and learn little else; try a "
        "smaller flow.noise_scale or prior.jitter, or a larger data.dequantisation"
    )


def duration(seconds: float) -> str:
    """Formats a duration in the unit that a reader expects."""
    for length, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _timed(function: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]]) -> float:
    """Returns the seconds of the fastest of three calls, of which none starts after a second."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < 1.0):
        made = arguments()
        started = time.perf_counter()
        jax.block_until_ready(function(*made))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _time_flow_step(model: Experiment) -> float:
    """Returns the seconds of a flow step of a device's part of the training batch.

    The variables are those that the flow prepares once, before its first step.
    """
    estimator, size = model.problem.estimator, model.settings.train.batch_size
    once = model.problem._replace(estimator=estimator._replace(prepare=lambda prepared: prepared))
    num = parallel.local_batch_size(size)
    x, labels = jnp.zeros((num, *model.source.event_shape)), draw.labels_at(model, np.arange(num))
    shapes = jax.eval_shape(estimator.prepare, model.state_shapes().variables)
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    step = jax.jit(lambda variables, x: drift(x, once.potential(variables, labels)))
    jax.block_until_ready(step(variables, x))  # Compiles it.
    return _timed(step, lambda: (variables, x))

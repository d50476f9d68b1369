"""The one training loop. What it trains, on what, is in the experiment that it is given."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import metrics_log
from experiments.build import Experiment, Guard
from experiments.checkpoints import FREE_IN_TRAINING, Checkpoints
from experiments.data.feed import Feed
from experiments.errors import DivergedError
from experiments.metrics_log import Record
from experiments.sampling import SampleFn, make_sample_fn
from experiments.workdir import Workdir, write_json
from fdrl_jax import parallel, steps
from fdrl_jax.state import TrainState


class Window(NamedTuple):
    """Metrics since the last log, still on the device: (first step, count, arrays) a dispatch."""

    started: float
    parts: list[tuple[int, int, dict[str, jax.Array]]]

    def fetch(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Waits for the device; returns the steps and the value of each metric at each of them."""
        numbers = np.concatenate([first + np.arange(count) for first, count, _ in self.parts])
        host = [(count, jax.device_get(parallel.unreplicate(m))) for _, count, m in self.parts]
        names = host[0][1]
        return numbers, {k: np.concatenate([m[k][:count] for count, m in host]) for k in names}


def train(experiment: Experiment, workdir: Workdir, command: str) -> TrainState:
    """Trains from the newest checkpoint of the workdir, or from the start, to the last step.

    Args:
      experiment: from `build.experiment`.
      workdir: where checkpoints, metrics and snapshots go.
      command: what the user typed, for the record.

    Returns:
      The last train state, one replica, on the host.

    Raises:
      DivergedError: if the loss is not finite or the ratio saturates. Checkpoints before that stay.
      UserError: if the workdir's checkpoint is of another config.
    """
    store = Checkpoints(workdir.checkpoints, experiment.num_checkpoints)
    template = jax.eval_shape(experiment.init_state)
    # A schedule over the whole run makes its length a part of every step.
    free = (*FREE_IN_TRAINING, "train.num_steps") if experiment.may_lengthen else FREE_IN_TRAINING
    restored = store.restore(template, experiment.settings, free)
    train_state = experiment.init_state() if restored is None else restored
    step = int(train_state.step)
    if restored is not None:
        store.check_data(step, experiment.data_state(step))
    # Only now: a config that does not fit the checkpoint must not replace the record of the run.
    write_json(workdir.config, {"command": command, "settings": experiment.settings})
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        writers = [
            stack.enter_context(contextlib.closing(w)) for w in _writers(experiment, workdir, step)
        ]
        feed = stack.enter_context(experiment.open_feed(step))
        return _run(experiment, workdir, store, train_state, step, writers, feed)


def _run(
    experiment: Experiment,
    workdir: Workdir,
    store: Checkpoints,
    train_state: TrainState,
    step: int,
    writers: list[metrics_log.Writer],
    feed: Feed,
) -> TrainState:
    train_step = experiment.make_train_step(experiment.problem)
    run_steps = parallel.map_steps(steps.repeat_steps(train_step, experiment.steps_per_dispatch))
    sample = make_sample_fn(experiment)
    replicated = parallel.replicate(train_state)
    constants = parallel.replicate(experiment.constants)
    cadence, last = experiment.cadence, experiment.num_steps

    def due(every: int) -> bool:
        return step % every == 0 or step == last

    window = Window(time.perf_counter(), [])
    bar = tqdm(
        total=last, initial=step, unit="step", desc="compiling", smoothing=0.1, disable=step >= last
    )
    with bar:
        while step < last:
            until_next = [every - step % every for every in cadence]
            count = min(experiment.steps_per_dispatch, last - step, *until_next)
            # Gathered while the device works on the dispatch before.
            host_batches = feed.take(count)
            replicated, metrics = run_steps(replicated, constants, host_batches, count)
            window.parts.append((step + 1, count, metrics))
            step += count
            if host_batches is not None and len(window.parts) > 1:
                # At most two dispatches on their way: batches of more would fill the memory.
                jax.block_until_ready(window.parts[-2][2])
            if not any(map(due, cadence)):
                continue
            # The only places where the host waits for the device to be idle.
            numbers, values = window.fetch()
            _check_sane(numbers, values, experiment, store)
            if due(cadence.log_steps):
                record = _summarise(experiment, step, values, time.perf_counter() - window.started)
                for writer in writers:
                    writer.write(step, record)
                bar.set_description(f"loss {record['loss']:.4f}")
                bar.update(step - bar.n)
                window = Window(time.perf_counter(), [])
            if due(cadence.snapshot_steps):
                _write_snapshot(experiment, workdir, step, sample, replicated, constants)
            if due(cadence.checkpoint_steps):
                store.save(
                    parallel.unreplicate(replicated),
                    experiment.settings,
                    experiment.data_state(step),
                )
    return jax.tree.map(np.asarray, parallel.unreplicate(replicated))


def _writers(experiment: Experiment, workdir: Workdir, step: int) -> Iterator[metrics_log.Writer]:
    yield metrics_log.JsonLines(workdir.metrics, step)
    if experiment.loggers.tensorboard:
        yield metrics_log.TensorBoard(workdir.root / "tensorboard", step)
    if experiment.loggers.wandb != "off":
        mode = experiment.loggers.wandb
        yield metrics_log.Wandb(workdir.root, mode, experiment.settings)


def _summarise(
    experiment: Experiment, step: int, values: dict[str, np.ndarray], seconds: float
) -> Record:
    count = len(values["loss"])
    return {
        **{name: float(np.mean(value)) for name, value in sorted(values.items())},
        "learning_rate": float(experiment.schedule(step - 1)),
        "steps_per_second": count / seconds,
        "examples_per_second": count * experiment.batch_size / seconds,
    }


def _check_sane(
    numbers: np.ndarray, values: dict[str, np.ndarray], experiment: Experiment, store: Checkpoints
) -> None:
    trouble = find_trouble(numbers, values, experiment.problem.bregman.output, experiment.guard)
    if trouble is None:
        return
    store.wait()
    good = store.steps()
    kept = (
        f"the last good checkpoint is of step {good[-1]}" if good else "there is no checkpoint yet"
    )
    raise DivergedError(
        f"training diverged: {trouble}; {kept}. Try a smaller optimizer.learning_rate or "
        "flow.step_size, optimizer.clip_norm=1, a larger train.batch_size, or loss.name=lr"
    )


def find_trouble(
    numbers: np.ndarray, values: dict[str, np.ndarray], output: str, guard: Guard
) -> str | None:
    """Says at which step which metric left its bounds first, or nothing.

    Args:
      numbers: steps, [T].
      values: metrics at these steps, [T] each.
      output: what the network returns, "ratio" or "log_ratio".
      guard: the bounds.
    """
    limit = guard.max_log_ratio if output == "log_ratio" else guard.max_ratio
    limits = dict.fromkeys(("loss", "grad_norm", "drift_norm"), np.inf)
    limits |= dict.fromkeys(("output_real", "output_flowed"), limit)
    found = []
    for name, bound in limits.items():
        # "not within" and not "beyond", so that NaN counts.
        bad = ~(np.abs(values[name]) < bound)
        if bad.any():
            first = int(np.argmax(bad))
            found.append((int(numbers[first]), name, float(values[name][first])))
    if not found:
        return None
    step, name, value = min(found, key=lambda item: item[0])
    if np.isfinite(value):
        kind = "log ratio" if output == "log_ratio" else "ratio"
        return f"the mean {kind} ({name}) saturated at {value:.4g} at step {step}"
    return f"{name} is {value} at step {step}"


def _write_snapshot(
    experiment: Experiment,
    workdir: Workdir,
    step: int,
    sample: SampleFn,
    replicated: TrainState,
    constants: Any,
) -> None:
    samples = sample(replicated.ema_variables, constants, experiment.snapshot_samples)
    np.savez_compressed(workdir.snapshots / f"{step:08d}.npz", arr_0=samples.refined)

"""The one training loop. What it trains, on what, is in the `Training` that it is given."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.build import Experiment, Training, rollbacks
from experiments.data.feed import Feed
from experiments.errors import DivergedError, PreemptedError
from experiments.machine import hosts
from experiments.sampling.draw import SampleFn, make_sample_fn
from experiments.storage.checkpoints import FREE_IN_TRAINING, Checkpoints
from experiments.storage.workdir import Workdir, replacing, write_json
from experiments.training import divergence, memory, metrics_log
from experiments.training.judge import Judge
from experiments.training.metrics_log import Record
from experiments.training.preemption import Preemption
from fdrl_jax import parallel, steps
from fdrl_jax.state import TrainState


class _Window(NamedTuple):
    """Metrics since the last log, still on the device: (first step, count, arrays) a dispatch."""

    started: float
    parts: list[tuple[int, int, dict[str, jax.Array]]]

    def fetch(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Waits for the device; returns the steps and the value of each metric at each of them."""
        numbers = np.concatenate([first + np.arange(count) for first, count, _ in self.parts])
        host = [(count, jax.device_get(parallel.unreplicate(m))) for _, count, m in self.parts]
        names = host[0][1]
        return numbers, {k: np.concatenate([m[k][:count] for count, m in host]) for k in names}


def train(experiment: Training, workdir: Workdir, command: str) -> TrainState:
    """Trains from the newest checkpoint of the workdir, or from the start, to the last step.

    Args:
      experiment: an `Experiment`, or the training of a classifier.
      workdir: where checkpoints, metrics and snapshots go.
      command: what the user typed, for the record.

    Returns:
      The last train state, one replica, on the host.

    Raises:
      DivergedError: if the loss is not finite or the ratio saturates, and the run should stop or
        has been rolled back often enough. Checkpoints before that stay.
      PreemptedError: if the system asked the run to end; its state is saved.
      PeerError: if replicas do not agree.
      UserError: if the workdir's checkpoint is of another config, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        store = Checkpoints(workdir.checkpoints, experiment.num_checkpoints)
        stack.callback(store.close)
        start, restored = _newest(experiment, store)
        if restored:
            store.check_data(int(start.step), experiment.data_state(rollbacks.num_batches(start)))
        # Only now: a config that does not fit must not replace the record of the run.
        if parallel.is_first_process():
            write_json(workdir.config, {"command": command, "settings": experiment.settings})
        trainer = _Trainer(experiment, workdir, store, preemption)
        while True:
            try:
                return trainer.train_from(start)
            except DivergedError as error:
                store.wait()
                good, restored = _newest(experiment, store)
                start = divergence.recover(error, experiment.guard, start, good, restored)


def _newest(experiment: Training, store: Checkpoints) -> tuple[TrainState, bool]:
    """Returns the state of the newest checkpoint, or that before the first step, and which."""
    template = jax.eval_shape(experiment.init_state)
    # A schedule over the whole run makes its length a part of every step.
    free = (*FREE_IN_TRAINING, "train.num_steps") if experiment.may_lengthen else FREE_IN_TRAINING
    restored = store.restore(template, experiment.settings, free)
    if restored is None:
        return experiment.init_state(), False
    store.set_aside_after(int(restored.step))
    return restored, True


class _Trainer:
    """Trains from a state on, and again from another one if need be; compiles once."""

    def __init__(
        self, experiment: Training, workdir: Workdir, store: Checkpoints, preemption: Preemption
    ) -> None:
        self._experiment = experiment
        self._workdir = workdir
        self._store = store
        self._preemption = preemption
        train_step = experiment.train_step()
        self._run_steps = memory.checked(
            parallel.map_steps(steps.repeat_steps(train_step, experiment.steps_per_dispatch))
        )
        self._constants = parallel.replicate(experiment.constants)
        # A classifier has no samples to judge and to look at.
        self._judge: Callable[[TrainState], Record] | None = None
        self._write_snapshot: Callable[[int, TrainState], None] | None = None
        if isinstance(experiment, Experiment):
            sample = make_sample_fn(experiment)
            self._judge = Judge(experiment, workdir, sample, self._constants).judge
            self._write_snapshot = _snapshot_writer(experiment, workdir, sample, self._constants)

    def train_from(self, start: TrainState) -> TrainState:
        """Trains to the last step.

        Raises:
          DivergedError: at the first log after a metric left its bounds.
          PreemptedError: with the state saved.
        """
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(contextlib.closing(writer))
                for writer in _writers(self._experiment, self._workdir, int(start.step))
            ]
            feed = stack.enter_context(self._experiment.open_feed(rollbacks.num_batches(start)))
            stack.enter_context(hosts.ending_with_peers())
            return self._run(start, writers, feed)

    def _run(self, start: TrainState, writers: list[metrics_log.Writer], feed: Feed) -> TrainState:
        experiment = self._experiment
        cadence, last = experiment.cadence, experiment.num_steps
        step, num_skipped = int(start.step), int(rollbacks.of(start).num_skipped)
        replicated = parallel.replicate(start)
        hosts.check_agreement(replicated, step)

        def due(every: int) -> bool:
            return every > 0 and (step % every == 0 or step == last)

        window = _Window(time.perf_counter(), [])
        bar = tqdm(
            total=last,
            initial=step,
            unit="step",
            desc="compiling",
            smoothing=0.1,
            disable=step >= last or not parallel.is_first_process(),
        )
        stopping = self._preemption.is_due()
        with bar:
            while step < last and not stopping:
                until_next = [every - step % every for every in cadence if every]
                count = min(experiment.steps_per_dispatch, last - step, *until_next)
                # Gathered while the device works on the dispatch before.
                host_batches = feed.take(count)
                replicated, metrics = self._run_steps(
                    experiment.key, replicated, self._constants, host_batches, count, num_skipped
                )
                window.parts.append((step + 1, count, metrics))
                step += count
                if len(window.parts) > 1:
                    # At most two dispatches on their way: batches of more would fill the memory,
                    # and a run that should end would have to wait for them.
                    jax.block_until_ready(window.parts[-2][2])
                stopping = self._preemption.is_due()
                if not stopping and not any(map(due, cadence)):
                    continue
                # The only places where the host waits for the device to be idle.
                numbers, values = window.fetch()
                divergence.check(numbers, values, experiment.output, experiment.guard)
                self._store.check_saved()
                judge = self._judge if due(cadence.evaluate_steps) and not stopping else None
                if due(cadence.log_steps) or judge or stopping:
                    seconds = time.perf_counter() - window.started
                    record = _summarise(experiment, step, values, seconds, start)
                    if judge:
                        record |= judge(replicated)
                    for writer in writers:
                        writer.write(step, record)
                    bar.set_description(f"loss {record['loss']:.4f}")
                    bar.update(step - bar.n)
                    window = _Window(time.perf_counter(), [])
                if due(cadence.checkpoint_steps) or stopping:
                    hosts.check_agreement(replicated, step)
                    self._store.save(
                        parallel.unreplicate(replicated),
                        experiment.settings,
                        experiment.data_state(step + num_skipped),
                    )
                if self._write_snapshot and due(cadence.snapshot_steps) and not stopping:
                    self._write_snapshot(step, replicated)
        if stopping:
            raise PreemptedError(
                f"asked to end by the system, at step {step}, which is saved; the same command "
                "goes on from there"
            )
        return jax.tree.map(np.asarray, parallel.unreplicate(replicated))


def _snapshot_writer(
    experiment: Experiment, workdir: Workdir, sample: SampleFn, constants: Any
) -> Callable[[int, TrainState], None]:
    def write(step: int, replicated: TrainState) -> None:
        variables, num = experiment.sampling_variables(replicated), experiment.snapshot_samples
        samples = sample(variables, constants, num)
        if parallel.is_first_process():
            with replacing(workdir.snapshots / f"{step:08d}.npz") as file:
                np.savez_compressed(file, arr_0=samples.refined)

    return write


def _writers(experiment: Training, workdir: Workdir, step: int) -> Iterator[metrics_log.Writer]:
    if not parallel.is_first_process():
        return
    yield metrics_log.JsonLines(workdir.metrics, step)
    if experiment.loggers.tensorboard:
        yield metrics_log.TensorBoard(workdir.root / "tensorboard", step)
    if experiment.loggers.wandb != "off":
        mode = experiment.loggers.wandb
        yield metrics_log.Wandb(workdir.root, mode, experiment.settings)


def _summarise(
    experiment: Training,
    step: int,
    values: dict[str, np.ndarray],
    seconds: float,
    start: TrainState,
) -> Record:
    count, before = len(values["loss"]), rollbacks.of(start)
    record = {
        **{name: float(np.mean(value)) for name, value in sorted(values.items())},
        "learning_rate": float(experiment.schedule(step - 1)) * float(before.learning_rate_scale),
        "steps_per_second": count / seconds,
        "examples_per_second": count * experiment.batch_size / seconds,
    }
    if experiment.guard.on_divergence == "rollback":
        record |= {"rollbacks": int(before.num), "skipped_batches": int(before.num_skipped)}
    return record

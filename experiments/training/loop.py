"""The training loop, for any network and data in a `Training`."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.build import Training, on_devices, rollbacks
from experiments.build.rollbacks import Rollbacks
from experiments.build.training import learning_rate
from experiments.checkpoints import Checkpoints
from experiments.data import Take
from experiments.errors import DivergedError, PreemptedError
from experiments.machine import hosts, interrupts, memory
from experiments.run import Run
from experiments.training import divergence, metrics_log
from experiments.training.metrics_log import Record
from experiments.training.preemption import Preemption
from fdrl_jax import parallel, rng
from fdrl_jax.state import TrainState


class Moment(NamedTuple):
    """The arguments of a hook, which runs while the device is idle.

    Attributes:
      step: number of completed train steps.
      state: the state, replicated on every device; must not be changed.
      constants: constants, as `build.on_devices` places them.
      best: "metric" and "value" of the best checkpoint so far, if there is one.
      save: `(metric, value) -> None` saves the state as the best checkpoint by a metric.
    """

    step: int
    state: Any
    constants: Any
    best: dict[str, Any] | None
    save: Callable[[str, float], None]


class Hook(NamedTuple):
    """An action to run during training, whose result is logged.

    It runs `every` number of steps, or never if that is 0, and after the last step.
    """

    every: int
    act: Callable[[Moment], Record | None]


def train(training: Training, run: Run, hooks: Sequence[Hook] = ()) -> TrainState:
    """Trains from the newest checkpoint of a run, or from the start, to the last step.

    The caller must hold the run's lock. Hooks are called in their order. Returns the last train
    state of one replica, on the host.

    Raises:
      DivergedError: if the loss is not finite or the ratio saturates, and the run should stop or
        has reached its number of rollbacks. Earlier checkpoints remain.
      PreemptedError: if the system asked the run to stop; its state is saved.
      PeerError: if replicas do not agree.
      UserError: if a checkpoint cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        store = stack.enter_context(run.checkpoints(training.settings["checkpoint.keep"]))
        interrupts.describe_loss(lambda: _when_interrupted(max(store.steps(), default=None)))
        loop = _Loop(training, run, hooks, store, preemption)
        start = _newest(training, store)
        while True:
            try:
                return loop.train_from(start)
            except DivergedError as error:
                store.wait()
                good = _newest(training, store)
                start = divergence.recover(
                    error, training.settings, start, good, has_saved=bool(store.steps())
                )


def _newest(training: Training, store: Checkpoints) -> TrainState:
    """Returns the state of the newest checkpoint, or that before the first step."""
    restored = store.restore(training.state_shapes())
    store.set_aside_after(-1 if restored is None else int(restored.state.step))
    return training.init_state() if restored is None else restored.state


class _Window:
    """Metrics since the last log, still on the device: (first step, count, arrays) per dispatch."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int, dict[str, jax.Array]]] = []
        self.seconds = 0.0  # Time of training, without that of hooks.

    def fetch(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Waits for the device; returns the steps and the value of each metric at each of them."""
        numbers = np.concatenate([first + np.arange(count) for first, count, _ in self.parts])
        host = [(count, jax.device_get(parallel.unreplicate(m))) for _, count, m in self.parts]
        names = host[0][1]
        return numbers, {k: np.concatenate([m[k][:count] for count, m in host]) for k in names}


class _Loop:
    """Trains from a state, possibly several times after rollbacks, and compiles only once."""

    def __init__(
        self,
        training: Training,
        run: Run,
        hooks: Sequence[Hook],
        store: Checkpoints,
        preemption: Preemption,
    ) -> None:
        self._training, self._settings = training, training.settings
        self._run = run
        self._hooks = [hook for hook in hooks if hook.every]
        self._store = store
        self._preemption = preemption
        self._log_every = training.settings["log.every_steps"]
        self._save_every = training.settings["checkpoint.every_steps"]
        self._dispatch = training.settings["train.steps_per_dispatch"]
        self._run_steps = memory.checked(parallel.map_steps(training.repeated_step()))
        self._constants = on_devices(training.constants)
        self._key = rng.root_key(training.settings["seed"])

    def train_from(self, start: TrainState) -> TrainState:
        """Trains to the last step.

        Raises:
          DivergedError: at the first log after a metric exceeded its limits.
          PreemptedError: if the system asked the run to stop; the state is saved.
        """
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(contextlib.closing(writer))
                for writer in _writers(self._training, self._run, int(start.step))
            ]
            take = stack.enter_context(self._training.open_feed(rollbacks.num_batches(start)))
            return self._train(start, writers, take)

    def _train(
        self, start: TrainState, writers: list[metrics_log.Writer], take: Take
    ) -> TrainState:
        step, last, so_far = int(start.step), self._settings["train.num_steps"], rollbacks.of(start)
        start_step = step
        num_skipped = int(so_far.num_skipped)
        state = parallel.replicate(start)
        hosts.check_agreement(state, step)
        cadences = [self._log_every, self._save_every, *(hook.every for hook in self._hooks)]
        saved = step

        def due(every: int) -> bool:
            return step % every == 0 or step == last

        def save(best_by: tuple[str, float] | None = None) -> None:
            nonlocal saved
            hosts.check_agreement(state, step)
            self._run.check_present()
            self._store.save(
                parallel.unreplicate(state),
                data=self._training.data_position(step + num_skipped),
                best_by=best_by,
            )
            saved = step

        window, timer = _Window(), time.perf_counter()
        stopping = self._preemption.is_due()
        with _progress_bar(step, last) as bar:
            while step < last and not stopping:
                until_next = [every - step % every for every in cadences]
                count = min(self._dispatch, last - step, *until_next)
                # Fetched while the device works on the previous dispatch.
                host_batches = take(count)
                state, metrics = self._run_steps(
                    self._key, state, self._constants, host_batches, count, num_skipped
                )
                window.parts.append((step + 1, count, metrics))
                step += count
                if len(window.parts) > 1:
                    # At most two dispatches are queued: more would fill the memory with batches,
                    # and a run that should stop would have to wait for them.
                    jax.block_until_ready(window.parts[-2][2])
                if bar.n == start_step:
                    bar.set_description(f"compiled in {time.perf_counter() - timer:.1f} s")
                bar.update(count)
                stopping = self._preemption.is_due()
                if not stopping and not any(map(due, cadences)):
                    continue
                # The only places where the host waits for the device to be idle.
                numbers, values = window.fetch()
                window.seconds += time.perf_counter() - timer
                trouble = divergence.find_trouble(
                    numbers, values, self._training.output, self._settings
                )
                record: Record = {}
                if trouble is None:
                    self._store.check_saved()
                    for hook in self._hooks if not stopping else ():
                        if due(hook.every):
                            moment = Moment(
                                step,
                                state,
                                self._constants,
                                self._store.best(),
                                lambda metric, value: save((metric, value)),
                            )
                            record |= hook.act(moment) or {}
                    if (due(self._save_every) or stopping) and saved != step:
                        save()
                if due(self._log_every) or record or stopping or trouble is not None:
                    record |= self._summary(step, values, window.seconds, so_far)
                    for writer in writers:
                        writer.write(step, record)
                    bar.set_description(f"loss {record['loss']:.4f}")
                    window = _Window()
                if trouble is not None:
                    raise DivergedError(f"training diverged: {trouble}", last_step=step)
                timer = time.perf_counter()
        if stopping:
            self._store.wait()
            raise PreemptedError(_when_preempted(step, start_step, bool(self._store.steps())))
        return jax.tree.map(np.asarray, parallel.unreplicate(state))

    def _summary(
        self, step: int, values: dict[str, np.ndarray], seconds: float, so_far: Rollbacks
    ) -> Record:
        count, batch_size = len(values["loss"]), self._settings["train.batch_size"]
        rate = float(learning_rate(self._settings)(step - 1)) * float(so_far.learning_rate_scale)
        record = {
            **{name: float(np.mean(value)) for name, value in sorted(values.items())},
            "learning_rate": rate,
            "steps_per_second": count / seconds,
            "examples_per_second": count * batch_size / seconds,
        }
        if self._settings["train.on_divergence"] == "rollback":
            record["rollbacks"] = int(so_far.num)
            record["skipped_batches"] = int(so_far.num_skipped)
        return record


def _progress_bar(step: int, last: int) -> Any:
    return tqdm(
        total=last,
        initial=step,
        unit="step",
        desc="compiling",  # Until the first dispatch returns.
        smoothing=0.1,
        disable=step >= last or not parallel.is_first_process(),
    )


def _when_interrupted(saved: int | None) -> str:
    if saved is None:
        return "there is no complete checkpoint yet; the same command starts again"
    return f"the same command resumes from step {saved}"


def _when_preempted(step: int, start: int, has_saved: bool) -> str:
    if step == start and not has_saved:
        return "stopped by the system before the first step; the same command starts again"
    return f"stopped by the system at step {step}, which is saved; the same command resumes"


def _writers(training: Training, run: Run, step: int) -> Iterator[metrics_log.Writer]:
    if not parallel.is_first_process():
        return
    yield metrics_log.JsonLines(run.metrics, step)
    if training.settings["log.tensorboard"]:
        yield metrics_log.TensorBoard(run.root / "tensorboard", step)
    if training.settings["log.wandb"] != "off":
        yield metrics_log.Wandb(run.root, training.settings["log.wandb"], training.settings)

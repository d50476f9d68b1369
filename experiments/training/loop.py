"""The training loop, for any network and data in a `Training`."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.build import Training, on_devices, rollbacks
from experiments.build.rollbacks import Rollbacks
from experiments.build.training import learning_rate
from experiments.checkpoints import Checkpoints
from experiments.errors import DivergedError, PreemptedError
from experiments.machine import hosts, interrupts, memory
from experiments.run import Run
from experiments.settings import Settings
from experiments.training import divergence, metrics_log
from experiments.training.metrics_log import Record
from experiments.training.preemption import Preemption
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

_Metrics = tuple[int, dict[str, jax.Array]]


class Moment(NamedTuple):
    """The arguments of a hook, which runs while the device is idle."""

    step: int  # Number of completed train steps.
    state: Any  # Replicated on every device; must not be changed.
    constants: Any  # As `build.on_devices` places them.
    best: dict[str, Any] | None  # "metric" and "value" of the best checkpoint so far, if any.
    save_best: Callable[[str, float], None]  # Saves the state as the best, by a metric's value.


class Hook(NamedTuple):
    """An action to run during training, whose result is logged."""

    every: int  # Number of steps between runs; 0: never. It also runs after the last step.
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
    with (
        Preemption() as preemption,
        run.checkpoints(training.settings["checkpoint.keep"]) as store,
    ):
        interrupts.describe_loss(lambda: _when_interrupted(max(store.steps(), default=None)))
        active = [hook for hook in hooks if hook.every]
        # Here, so that training after a rollback compiles nothing again.
        run_steps = memory.checked(parallel.map_steps(training.repeated_step()))
        constants = on_devices(training.constants)
        start = _newest(training, store)
        while True:
            try:
                return _train_from(
                    start, training, run, active, store, preemption, run_steps, constants
                )
            except DivergedError as error:
                store.wait()
                good = _newest(training, store)
                start = divergence.recover(error, training.settings, start, good)


def _newest(training: Training, store: Checkpoints) -> TrainState:
    """Returns the state of the newest checkpoint, or that before the first step."""
    restored = store.restore(training.state_shapes())
    store.set_aside_after(-1 if restored is None else int(restored.state.step))
    return training.init_state() if restored is None else restored.state


def _train_from(
    start: TrainState,
    training: Training,
    run: Run,
    hooks: Sequence[Hook],
    store: Checkpoints,
    preemption: Preemption,
    run_steps: Callable[..., Any],
    constants: Any,
) -> TrainState:
    """Trains to the last step. Divergence is detected at each log; raises as `train`."""
    settings, so_far = training.settings, rollbacks.of(start)
    step, last = int(start.step), settings["train.num_steps"]
    num_skipped = int(so_far.num_skipped)
    log_every, save_every = settings["log.every_steps"], settings["checkpoint.every_steps"]
    cadences = [log_every, save_every, *(hook.every for hook in hooks)]
    start_step = saved = step
    key, state = training.root_key, parallel.replicate(start)
    hosts.check_agreement(state, step)

    def due(every: int) -> bool:
        return step % every == 0 or step == last

    def save() -> None:
        nonlocal saved
        if saved != step:
            hosts.check_agreement(state, step)
            run.check_present()
            store.save(parallel.unreplicate(state))
            saved = step

    def save_best(metric: str, value: float) -> None:
        save()
        store.record_best(step, metric, value)

    # Metrics since the last log, still on the device: count of steps and arrays of each dispatch.
    window: list[_Metrics] = []
    with (
        metrics_log.writers(run, settings, step) as writers,
        training.open_feed(step + num_skipped) as take,
        tqdm(
            total=last,
            initial=step,
            unit="step",
            desc="compiling",  # Until the first dispatch returns.
            smoothing=0.1,
            disable=step >= last or not parallel.is_first_process(),
        ) as bar,
    ):
        seconds, timer = 0.0, time.perf_counter()  # Of training, without hooks.
        stopping = preemption.is_due()
        while step < last and not stopping:
            until_next = [every - step % every for every in cadences]
            count = min(settings["train.steps_per_dispatch"], last - step, *until_next)
            # Fetched while the device works on the previous dispatch.
            host_batches = take(count)
            state, metrics = run_steps(key, state, constants, host_batches, count, num_skipped)
            window.append((count, metrics))
            step += count
            if len(window) > 1:
                # At most two dispatches are queued: more would fill the memory with batches,
                # and a run that should stop would have to wait for them.
                jax.block_until_ready(window[-2][1])
            if bar.n == start_step:
                bar.set_description(f"compiled in {time.perf_counter() - timer:.1f} s")
            bar.update(count)
            stopping = preemption.is_due()
            if not stopping and not any(map(due, cadences)):
                continue
            # The only places where the host waits for the device to be idle.
            values = _fetch(window)
            seconds += time.perf_counter() - timer
            numbers = np.arange(step - len(values["loss"]), step) + 1
            trouble = divergence.find_trouble(numbers, values, training.output, settings)
            record: Record = {}
            if trouble is None:
                store.check_saved()
                if stopping:
                    # Before the hooks, which may take longer than the system waits.
                    save()
                    store.wait()
                for hook in hooks:
                    if due(hook.every):
                        best = store.best()
                        moment = Moment(step, state, constants, best, save_best)
                        record |= hook.act(moment) or {}
                if due(save_every):
                    save()
            if due(log_every) or record or stopping or trouble is not None:
                record |= _summary(settings, step, values, seconds, so_far)
                for write in writers:
                    write(step, record)
                bar.set_description(f"loss {record['loss']:.4f}")
                window, seconds = [], 0.0
            if trouble is not None:
                raise DivergedError(f"training diverged: {trouble}", last_step=step)
            timer = time.perf_counter()
    if stopping:
        store.wait()
        raise PreemptedError(_when_preempted(step, start_step, bool(store.steps())))
    return jax.tree.map(np.asarray, parallel.unreplicate(state))


def _summary(
    settings: Settings, step: int, values: dict[str, np.ndarray], seconds: float, so_far: Rollbacks
) -> Record:
    count, batch_size = len(values["loss"]), settings["train.batch_size"]
    rate = float(learning_rate(settings)(step - 1)) * float(so_far.learning_rate_scale)
    record = {
        **{name: float(np.mean(value)) for name, value in sorted(values.items())},
        "learning_rate": rate,
        "steps_per_second": count / seconds,
        "examples_per_second": count * batch_size / seconds,
    }
    if settings["train.on_divergence"] == "rollback":
        record["rollbacks"] = int(so_far.num)
        record["skipped_batches"] = int(so_far.num_skipped)
    return record


def _fetch(window: Sequence[_Metrics]) -> dict[str, np.ndarray]:
    """Waits for the device; returns the values of each metric at all steps of the window."""
    host = [(count, jax.device_get(parallel.unreplicate(m))) for count, m in window]
    return {k: np.concatenate([m[k][:count] for count, m in host]) for k in host[0][1]}


def _when_interrupted(saved: int | None) -> str:
    if saved is None:
        return "there is no complete checkpoint yet; the same command starts again"
    return f"the same command resumes from step {saved}"


def _when_preempted(step: int, start: int, has_saved: bool) -> str:
    if step == start and not has_saved:
        return "stopped by the system before the first step; the same command starts again"
    return f"stopped by the system at step {step}, which is saved; the same command resumes"

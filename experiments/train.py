"""Trains a density ratio or a classifier: opens or creates the run, and loops over its steps."""

import contextlib
import functools
import itertools
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from tqdm import tqdm

from experiments import classifier, devices, draw, experiment, log, prior, run, settings
from experiments.checkpoints import Restored, Window
from experiments.command import Command
from experiments.data import Source, load
from experiments.errors import DivergedError, StoppedError, UserError
from experiments.evaluation import inception
from experiments.evaluation.metrics import Metric
from experiments.experiment import Experiment, Training
from experiments.files import write_npz
from experiments.run import Kind, Opened, Run
from experiments.settings import Settings
from fdrl_jax.training import parallel

_ACTIONS = ("log", "checkpoint", "snapshot", "evaluate")  # Sections with `every_steps`.
# Samples change most in the first steps of training, so these have snapshots as well.
_EARLY_SNAPSHOTS = (0, 10, 50)
_MONITORED = 1_000  # Samples of the metric that is computed during training.
_MAX_RATIO = 1e4  # Of a mean ratio, under losses that learn the ratio itself.
# The result of a vote is read this many dispatches later, when it is ready without waiting.
_VOTES_UNDER_WAY = 2


def train(command: Command) -> None:
    """Trains a density ratio, or resumes, evaluates the last state and writes the report."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        current, model = open_or_create(command)
        last = fit(model, current)
        # Imported here because it takes seconds, and training should start immediately.
        from experiments import evaluate

        evaluate.evaluate(Opened(current, model, last.state, last.sha256), live=model.source)


def train_classifier(command: Command) -> None:
    """Trains a classifier and prints the accuracy on held-out images."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        current, model = open_or_create(command, "classifier")
        state = fit(model, current).state
        if not devices.is_first_process():
            return
        found = classifier.write_accuracy(current, model, state)
        of = f"on {found['num_images']:,} held-out images"
        print(f"  accuracy {of}: {found['clean_accuracy']:.2%}")
        if epsilon := found["robust_at_epsilon"]:
            print(f"  under attack, L2 distance {epsilon:g}: {found['robust_accuracy']:.2%}")
        print(f"classifier: --classifier={shlex.quote(str(current.root))}")


def open_or_create(command: Command, kind: Kind = "ratio") -> tuple[Run, Any]:
    """Opens or creates a locked run and builds what it trains; checks before it writes."""
    current = run.open_run(command.folder, kind) if run.exists(command.folder) else None
    wanted, source = settings_and_data(command, current)
    used = devices.resolved(wanted)
    devices.multiply_in(used.precision)
    software = {**devices.environment(used.precision), "devices": None, "cores": None}
    shared, data = settings.shareable(wanted), run.describe_data(source)
    run.check_agreed([current and current.id, shared, data, software])
    with experiment.explained():
        devices.local_batch_size(used.train.batch_size)
    model: Training
    if kind == "classifier":
        model = classifier.build(used, source)
    else:
        check(used, source)
        fit_to = functools.partial(prior.fit_to, source, used.prior)
        model = experiment.build(used, source, current.prior() if current else fit_to)
    if current is not None:
        current.warn_of_changes(used.precision)
    else:
        current = run.create(command.folder, kind, wanted, source, model.fitted, command.text)
        if model.fitted and not devices.is_first_process():
            # Each process has fitted a prior of its own, and all must train with the stored one.
            model = experiment.build(used, source, current.prior())
    if devices.is_first_process():
        print(devices.describe_devices())
        current.log_command(command.text)
    return current, model


def settings_and_data(command: Command, current: Run | None = None) -> tuple[Settings, Source]:
    """Returns the checked settings of a command, and the training data."""
    if command.config is not None:
        wanted = settings.from_config(command.config)
    elif current is not None:
        wanted = settings.replace(current.settings, command.changes)
    else:
        raise UserError("--config=FILE.py is missing; the folder configs/ has examples")
    if current is not None:  # Before minutes of reading.
        wanted = experiment.for_shape(wanted, tuple(current.data["event_shape"]))
        wanted = current.changed(wanted, "train")
    source = load(wanted.data)
    if current is not None:
        current.check_data(source)
    return experiment.for_shape(wanted, source.event_shape), source


def check(wanted: Settings, source: Source) -> None:
    """Checks what the training of a density ratio would otherwise find after some time."""
    if wanted.evaluate.every_steps and source.kind == "images" and source.num_held_out < 2:
        raise UserError("the metric of evaluate.every_steps needs at least 2 held-out images")
    if weights := wanted.evaluate.inception_weights:
        inception.describe(weights)  # Raises an error if something is missing.


def fit(training: Training, current: Run) -> Restored:
    """Trains from the newest checkpoint of a locked run, or from the start, to the last step.

    Metrics, snapshots and checkpoints do not depend on where a run was interrupted. May raise
    `DivergedError` and `StoppedError`; saved checkpoints remain.
    """
    wanted, last = training.settings, training.settings.train.num_steps
    with StopSignals() as stop, current.checkpoints(wanted.checkpoint.keep) as store:
        restored = store.restore(training.state_shapes())
        run.check_agreed(restored and restored.sha256)
        start = restored.state if restored else training.init_state()
        step = saved = int(start.step)
        key, state = training.root_key, parallel.replicate(start)
        constants = parallel.replicate(training.constants)
        run_steps = parallel.map_steps(training.repeated_step())
        samples = _Samples(training, current) if isinstance(training, Experiment) else None
        recent = _Recent(restored.window if restored else {})

        def save(window: Window | None = None) -> None:
            nonlocal saved
            if saved != step:
                current.check_present()
                store.save(parallel.unreplicate(state), window)
                saved = step

        hidden = step >= last or not devices.is_first_process()
        with (
            log.writer(current.root, step, tensorboard=wanted.log.tensorboard) as write,
            training.open_feed(step) as take,
            tqdm(total=last, initial=step, unit="step", desc="compiling", disable=hidden) as bar,
        ):
            while True:
                due = _due(wanted, step)
                stopping = stop.is_due()
                if due or stopping:  # The only places where the host waits for the device.
                    values = recent.values()
                    if trouble := find_trouble(step, values, training.output, wanted):
                        write(step, recent.summary(wanted, step))
                        store.wait()
                        kept = f"step {store.steps()[-1]}" if store.steps() else "no step"
                        raise DivergedError(
                            f"training diverged: {trouble}; {kept} is saved. Resume with a smaller "
                            "--config.optimizer.learning_rate, or train again with "
                            "loss.gradient_penalty=1, a smaller flow.step_size or loss.name=lr"
                        )
                if stopping and step < last:
                    # Before what is due, which may take longer than the system waits.
                    save({name: value.tolist() for name, value in values.items()})
                    break
                if due and (values or not step):
                    record, metric = recent.summary(wanted, step) if values else {}, None
                    if samples and "snapshot" in due:
                        samples.write_snapshot(step, state, constants)
                    if samples and "evaluate" in due:
                        metric = samples.metric(state, constants)
                        record[log.PREFIX + metric.name] = metric.value
                    if due & {"log", "evaluate", "checkpoint"}:
                        write(step, record)  # Before a checkpoint, from which no line is repeated.
                        bar.set_description(_shown(record))
                        recent = _Recent({})
                    if metric and _is_better(metric, store.best()):
                        save()
                        store.record_best(step, metric.name, metric.value)
                    if "checkpoint" in due:
                        save()
                if step == last:
                    break
                most = wanted.train.steps_per_dispatch
                count = next((n for n in range(1, most) if _due(wanted, step + n)), most)
                # Fetched while the device works on the previous dispatch.
                host_batches = take(count)
                state, metrics = run_steps(key, state, constants, host_batches, count)
                recent.add(count, metrics)
                step += count
                bar.update(count)
        if stopping:
            store.wait()
            saved_at = f"step {step} is saved" if store.steps() else "no step is saved"
            by = stop.heard or "a signal to another process"
            raise StoppedError(f"stopped by {by}; {saved_at}. Rerun to resume.")
        final = jax.tree.map(np.asarray, parallel.unreplicate(state))
        return Restored(final, current.digest(final), {})


def _due(wanted: Settings, step: int) -> set[str]:
    """Returns the actions that are due after a number of steps."""
    is_last = step == wanted.train.num_steps
    every = {name: getattr(wanted, name).every_steps for name in _ACTIONS}
    due = {name for name, of in every.items() if step and of and (is_last or step % of == 0)}
    return due | ({"snapshot"} if step in _EARLY_SNAPSHOTS else set())


class _Recent:
    """Metrics since the last line of the log: those of each dispatch are on the device."""

    def __init__(self, window: Window) -> None:
        self._earlier = {name: np.array(of, np.float32) for name, of in window.items()}
        self._parts: list[tuple[int, dict[str, jax.Array]]] = []
        self._started = time.perf_counter()

    def add(self, count: int, metrics: dict[str, jax.Array]) -> None:
        self._parts.append((count, metrics))
        if len(self._parts) > 1:
            # At most two dispatches are queued: a run that should stop waits for them.
            jax.block_until_ready(self._parts[-2][1])

    def values(self) -> dict[str, np.ndarray]:
        """Waits for the device; returns the values of each metric at all steps."""
        host = [(count, jax.device_get(parallel.unreplicate(m))) for count, m in self._parts]
        parts = [self._earlier] if self._earlier else []
        parts += [{name: of[:count] for name, of in m.items()} for count, m in host]
        names = parts[0] if parts else ()
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def summary(self, wanted: Settings, step: int) -> log.Record:
        means = {name: float(np.mean(of)) for name, of in sorted(self.values().items())}
        rate = sum(count for count, _ in self._parts) / (time.perf_counter() - self._started)
        return {
            **means,
            "learning_rate": float(experiment.learning_rate(wanted)(step - 1)),
            "steps_per_second": rate,
            "examples_per_second": rate * wanted.train.batch_size,
        }


class _Samples:
    """Samples during training, which they do not affect: they have keys of their own."""

    def __init__(self, model: Experiment, current: Run) -> None:
        self._model, self._run, self._draw = model, current, draw.make(model)

    def _drawn(self, state: Any, constants: Any, num: int) -> np.ndarray:
        return self._draw(state.ema_variables, constants, {"refined": num})["refined"]

    def write_snapshot(self, step: int, state: Any, constants: Any) -> None:
        samples = self._drawn(state, constants, draw.num_snapshot(self._model))
        if devices.is_first_process():
            self._run.snapshots.mkdir(exist_ok=True)
            file = self._run.snapshots / f"{step:08d}.npz"
            write_npz(file, {"arr_0": samples}, compressed=True)

    def metric(self, state: Any, constants: Any) -> Metric:
        num_samples = min(_MONITORED, self._model.settings.evaluate.num_samples)
        return self._metric_of(self._drawn(state, constants, num_samples))

    @functools.cached_property
    def _metric_of(self) -> Callable[[np.ndarray], Metric]:
        # Importing metrics takes seconds, and most runs need none until the end.
        from experiments.evaluation.draws import cheap_metric

        return cheap_metric(self._run.metric_reference)


def _is_better(metric: Metric, best: dict[str, Any] | None) -> bool:
    # Values of another metric, or for another number of samples, are not comparable.
    before = best["value"] if best and best["metric"] == metric.name else math.inf
    return devices.first_process_says(math.isfinite(metric.value) and metric.value < before)


def find_trouble(
    step: int, values: dict[str, np.ndarray], output: str, wanted: Settings
) -> str | None:
    """Returns a message about the first value beyond its limits, [T] up to `step`, or `None`."""
    kind = "log ratio" if output == "log_ratio" else "ratio"
    most = wanted.train.max_log_ratio if kind == "log ratio" else _MAX_RATIO
    limits = dict.fromkeys(("loss", "grad_norm", "drift_norm"), np.inf)
    limits |= dict.fromkeys(("output_real", "output_flowed"), most)
    length = len(values.get("loss", ()))
    for i, name in itertools.product(range(length), limits):
        value, at = float(values[name][i]) if name in values else 0.0, step - length + i + 1
        if not np.isfinite(value):
            return f"{name} is {value} at step {at}"
        if abs(value) >= limits[name]:
            return f"the mean {kind} ({name}) saturated at {value:.4g} at step {at}"
    return None


def _shown(record: log.Record) -> str:
    """Describes progress. The loss of a good ratio hardly moves, but the drift does."""
    name = "drift_norm" if "drift_norm" in record else "accuracy"
    return f"loss {record['loss']:.4f}, {name.removesuffix('_norm')} {record[name]:.3g}"


class StopSignals:
    """Handles SIGTERM, Ctrl-C and SIGHUP: the first one saves and stops, a second one kills.

    A signal to one of several processes suffices: they vote at each dispatch.
    """

    def __init__(self) -> None:
        self.heard = ""  # The name of the signal, if there was one.
        self._votes: deque[Any] = deque()
        self._before: dict[signal.Signals, Any] = {}
        self._before_fd = self._writer = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Others cannot handle signals.
            # Python's handlers wait for compiled code, which may take minutes. A thread does not.
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # As under nohup.
                    self._before[number] = signal.signal(number, lambda *_: None)
            self._before_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer >= 0:
            signal.set_wakeup_fd(self._before_fd)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._writer)  # Ends the thread.

    def is_due(self) -> bool:
        """Whether to stop now. Every process must call this once before each dispatch."""
        if jax.process_count() == 1:
            return bool(self.heard)
        self._votes.append(parallel.any_process(bool(self.heard)))
        return len(self._votes) > _VOTES_UNDER_WAY and bool(self._votes.popleft())

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while received := signals.read(1):
                if received[0] not in self._before:
                    continue
                if self.heard:
                    os._exit(128 + received[0])
                name = signal.Signals(received[0]).name
                self.heard = "Ctrl-C" if name == "SIGINT" else name
                with contextlib.suppress(OSError):  # The terminal may be closed.
                    text = f"\n{self.heard}: saving and stopping; again to stop now"
                    print(text, file=sys.stderr)

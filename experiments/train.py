"""Trains a density ratio, or a classifier: creates or resumes the run, and loops over its steps."""

import dataclasses
import functools
import itertools
import math
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments import (
    classifier,
    draw,
    experiment,
    log,
    precision,
    prior,
    run,
    settings,
)
from experiments.checkpoints import Checkpoints, Restored
from experiments.command import Command
from experiments.data import Source, load
from experiments.errors import DivergedError, StoppedError, UserError
from experiments.evaluation import inception
from experiments.evaluation.metrics import Metric
from experiments.experiment import Experiment, Training
from experiments.files import remove_remains, replacing
from experiments.hosts import StopSignals
from experiments.prior import FittedPrior
from experiments.run import Opened, Run
from experiments.settings import Data, Settings
from fdrl_jax import bregman
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

_ADVICE = (
    "Resume with a smaller --config.optimizer.learning_rate, or train anew with "
    "loss.gradient_penalty=1, a smaller flow.step_size or loss.name=lr"
)
# Samples change most in the first steps of training, so these have snapshots as well.
_EARLY_SNAPSHOTS = (0, 10, 50)
_MONITORED = 1_000  # Samples of the metric that is computed during training.
_MAX_RATIO = 1e4  # Of a mean ratio, under losses that learn the ratio itself.
_Metrics = tuple[int, dict[str, jax.Array]]


class Moment(NamedTuple):
    """The arguments of a hook, which runs while the device is idle."""

    step: int  # Number of completed training steps.
    state: Any  # Replicated on every device; must not be changed.
    constants: Any  # Replicated as well.
    best: dict[str, Any] | None  # "metric" and "value" of the best checkpoint so far, if any.
    save_best: Callable[[str, float], None]  # Saves the state as the best, by a metric's value.


class Hook(NamedTuple):
    """An action to run during training, whose result is logged."""

    every: int  # Number of steps between runs; 0: never. It also runs after the last step.
    act: Callable[[Moment], log.Record | None]
    early: tuple[int, ...] = ()  # Further steps after which it runs, in order.


def train(command: Command) -> None:
    """Trains a density ratio, evaluates the last state and writes the report.

    Resumes from the newest checkpoint, if there is one. A finished run is not changed.
    """
    with run.locked_folder(command.folder, creates=command.config is not None):
        opened, model = create_or_resume(command)
        _introduce(opened, command)
        last = fit(model, opened, hooks_of(model, opened))
        # Imported here because it takes seconds, and training should start immediately.
        from experiments import evaluate

        evaluate.evaluate(Opened(opened, model, *last), live=model.source)


def train_classifier(command: Command) -> None:
    """Trains a classifier and prints the accuracy on held-out images."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        opened, wanted, source = _opened_or_new(command, "classifier")
        model = classifier.build(precision.resolve(wanted), source)
        model.make_step(None)
        if opened is None:
            opened = run.create(
                command.folder, "classifier", wanted, source, None, command.text, command.data_dir
            )
        _introduce(opened, command)
        state = fit(model, opened).state
        if not parallel.is_first_process():
            return
        found = classifier.accuracy(model, state)
        classifier.write_accuracy(opened, int(state.step), found)
        print(
            f"  accuracy on {found['num_images']:,} held-out images: "
            f"{100 * found['clean_accuracy']:.2f}%"
        )
        if wanted.attack.epsilon and wanted.attack.num_steps:
            robust = 100 * found["robust_accuracy"]
            print(f"  under attack, L2 distance {wanted.attack.epsilon:g}: {robust:.2f}%")
        print(f"classifier: --classifier={shlex.quote(str(opened.root))}")


def _introduce(opened: Run, command: Command) -> None:
    if parallel.is_first_process():
        print(precision.describe_devices())
        opened.log_command(command.text)
        remove_remains(opened.root)


def create_or_resume(command: Command) -> tuple[Run, Experiment]:
    """Opens the run of a density ratio for training, or creates it, and builds the experiment.

    The caller must hold its lock. Everything is checked before anything is written.
    """
    opened, wanted, source = _opened_or_new(command, "ratio")
    used = precision.resolve(wanted)
    check_ratio(used, source, is_new=opened is None)
    if opened is not None:
        return opened, experiment.build(used, source, opened.prior())
    of_prior = _fitted_prior(used, source) if used.prior.name == "data_dependent" else None
    model = experiment.build(used, source, of_prior)
    model.make_step(None)  # Checks that the batch divides over devices.
    created = run.create(
        command.folder, "ratio", wanted, source, of_prior, command.text, command.data_dir
    )
    if of_prior is not None and not parallel.is_first_process():
        # Each process has fitted a prior of its own, and all must train with the stored one.
        return created, experiment.build(used, source, created.prior())
    return created, model


def check_ratio(wanted: Settings, source: Source, *, is_new: bool) -> None:
    """Checks what the training of a density ratio would otherwise find after some time."""
    of_classifiers = [k for k in settings.changed(wanted) if k.startswith(("attack.", "augment."))]
    if is_new and of_classifiers:
        raise UserError(
            f"{', '.join(of_classifiers)}: for classifiers only, and this mode trains a density "
            "ratio. Add --mode=classifier, or remove the setting"
        )
    every = wanted.evaluate.every_steps
    if every and source.kind == "images" and source.num_held_out < 2:
        raise UserError(
            f"evaluate.every_steps={every}: the metric needs at least 2 held-out images, and the "
            "data have one; set it to 0"
        )
    if weights := wanted.evaluate.inception_weights:
        inception.describe(weights)  # Raises an error if something is missing.


def _fitted_prior(wanted: Settings, source: Source) -> FittedPrior:
    """Fits the prior of a new run. It may take minutes, so what can be wrong is checked before."""
    with experiment.explained():
        num_classes = experiment.num_classes(wanted, source)
        experiment.make_network(wanted, source.event_shape, num_classes)
        bregman.check_pair(wanted.loss.name, wanted.loss.divergence)
        parallel.local_batch_size(wanted.train.batch_size)
        started = time.perf_counter()
        fitted = prior.fit_to(source, wanted.prior, num_classes)
    if parallel.is_first_process():
        print(f"{prior.describe(fitted)}, {time.perf_counter() - started:.1f} s")
    return fitted


def _opened_or_new(command: Command, kind: run.Kind) -> tuple[Run | None, Settings, Source]:
    """Returns the run of a command if there is one, the settings to train with, and the data."""
    if not run.exists(command.folder):
        wanted, source = settings_and_data(command)
        run.check_free(command.folder, data_options(wanted, command.data_dir))
        return None, wanted, source
    opened = run.open_run(command.folder, kind)
    if command.config is None:
        wanted = settings.replace(opened.settings, command.changes)
    else:
        wanted = settings.from_config(command.config)
    wanted = opened.resumed(experiment.for_shape(wanted, tuple(opened.data["event_shape"])))
    data_dir = command.data_dir or opened.remembered_dir(wanted.data.dir)
    source = load(data_options(wanted, data_dir))
    run.check_same_data(source)
    opened.check_data(source)
    return opened, wanted, source


def settings_and_data(command: Command) -> tuple[Settings, Source]:
    """Returns the checked settings of a new run, and its data."""
    if command.config is None:
        raise UserError("--config=FILE.py is missing; the folder configs/ has examples")
    wanted = settings.from_config(command.config)
    source = load(data_options(wanted, command.data_dir))
    return experiment.for_shape(wanted, source.event_shape), source


def data_options(wanted: Settings, data_dir: str) -> Data:
    """Returns where and how a run's data are read; a folder of the command comes first."""
    return dataclasses.replace(wanted.data, dir=data_dir or wanted.data.dir)


def hooks_of(model: Experiment, opened: Run) -> Sequence[Hook]:
    """Returns what the training of a density ratio does along the way.

    Training is not affected: samples use separate keys, and the state is only read.
    """
    sample, wanted = draw.make(model), model.settings

    def drawn(moment: Moment, num_samples: int) -> np.ndarray:
        variables = model.sampling_variables(moment.state)
        return sample(variables, moment.constants, {"refined": num_samples})["refined"]

    def write_snapshot(moment: Moment) -> None:
        """Writes samples, for the picture of the course of training."""
        samples = drawn(moment, draw.num_snapshot(model))
        if parallel.is_first_process():
            opened.snapshots.mkdir(exist_ok=True)
            with replacing(opened.snapshots / f"{moment.step:08d}.npz") as file:
                np.savez_compressed(file, arr_0=samples)

    @functools.cache
    def metric_of() -> Callable[[np.ndarray], Metric]:
        # Importing metrics takes seconds, and most runs need none until the end.
        from experiments.evaluation.draws import cheap_metric

        return cheap_metric(opened.metric_reference)

    def monitor(moment: Moment) -> log.Record:
        """Computes the cheap metric of samples, and saves the checkpoint that is best by it."""
        metric = metric_of()(drawn(moment, min(_MONITORED, wanted.evaluate.num_samples)))
        best = moment.best
        # Values of another metric, or for another number of samples, are not comparable.
        before = best["value"] if best and best["metric"] == metric.name else math.inf
        improved = math.isfinite(metric.value) and metric.value < before
        # The values on different processes may differ in the last bit, so the first one decides.
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            moment.save_best(metric.name, metric.value)
        return {log.PREFIX + metric.name: metric.value}

    return (
        Hook(wanted.evaluate.every_steps, monitor),
        Hook(wanted.snapshot.every_steps, write_snapshot, _EARLY_SNAPSHOTS),
    )


def fit(training: Training, opened: Run, hooks: Sequence[Hook] = ()) -> Restored:
    """Trains from the newest checkpoint of a run, or from the start, to the last step.

    The caller must hold the run's lock. Hooks are called in their order. Returns the last state, of
    one replica and on the host, as it would be restored from its checkpoint. May raise
    `DivergedError` and `StoppedError`; saved checkpoints remain.
    """
    with (
        StopSignals() as signals,
        opened.checkpoints(training.settings.checkpoint.keep) as store,
    ):
        restored = store.restore(training.state_shapes())
        start = training.init_state() if restored is None else restored.state
        active = [hook for hook in hooks if hook.every]
        return _fit_from(start, training, opened, active, store, signals)


def _fit_from(
    start: TrainState,
    training: Training,
    opened: Run,
    hooks: Sequence[Hook],
    store: Checkpoints,
    signals: StopSignals,
) -> Restored:
    """Trains to the last step. Divergence is detected at each log."""
    run_steps = parallel.map_steps(training.repeated_step())
    constants = parallel.replicate(training.constants)
    wanted = training.settings
    step, last = int(start.step), wanted.train.num_steps
    cadences = [wanted.log.every_steps, wanted.checkpoint.every_steps, *(h.every for h in hooks)]
    early = {at for hook in hooks for at in hook.early}
    start_step = saved = step
    key, state = training.root_key, parallel.replicate(start)

    def due(every: int) -> bool:
        return step % every == 0 or step == last

    def run_hooks() -> log.Record:
        record: log.Record = {}
        for hook in hooks:
            if step in hook.early or (step and due(hook.every)):
                moment = Moment(step, state, constants, store.best(), save_best)
                record |= hook.act(moment) or {}
        return record

    def save() -> None:
        nonlocal saved
        if saved != step:
            opened.check_present()
            store.save(parallel.unreplicate(state))
            saved = step

    def save_best(metric: str, value: float) -> None:
        save()
        store.record_best(step, metric, value)

    # Metrics since the last log, still on the device: count of steps and arrays of each dispatch.
    window: list[_Metrics] = []
    with (
        log.writers(opened.root, wanted, step) as writers,
        training.open_feed(step) as take,
        tqdm(
            total=last,
            initial=step,
            unit="step",
            desc="compiling",  # Until the first dispatch returns.
            smoothing=0.1,
            disable=step >= last or not parallel.is_first_process(),
        ) as bar,
    ):
        stopping = signals.is_due()
        if step == 0 and not stopping:
            run_hooks()
        seconds, timer = 0.0, time.perf_counter()  # Of training, without hooks.
        while step < last and not stopping:
            until_next = [every - step % every for every in cadences]
            until_next += [at - step for at in early if at > step]
            count = min(wanted.train.steps_per_dispatch, last - step, *until_next)
            # Fetched while the device works on the previous dispatch.
            host_batches = take(count)
            state, metrics = run_steps(key, state, constants, host_batches, count, 0)
            window.append((count, metrics))
            step += count
            if len(window) > 1:
                # At most two dispatches are queued: more would fill the memory with batches,
                # and a run that should stop would have to wait for them.
                jax.block_until_ready(window[-2][1])
            if bar.n == start_step:
                bar.set_description(f"compiled in {time.perf_counter() - timer:.1f} s")
            bar.update(count)
            stopping = signals.is_due()
            if not stopping and step not in early and not any(map(due, cadences)):
                continue
            # The only places where the host waits for the device to be idle.
            values = _fetch(window)
            seconds += time.perf_counter() - timer
            numbers = np.arange(step - len(values["loss"]), step) + 1
            trouble = find_trouble(numbers, values, training.output, wanted)
            record: log.Record = {}
            if trouble is None:
                store.check_saved()
                if stopping:
                    # Before the hooks, which may take longer than the system waits.
                    save()
                    store.wait()
                record = run_hooks()
                if due(wanted.checkpoint.every_steps):
                    save()
            if due(wanted.log.every_steps) or record or stopping or trouble is not None:
                record |= _summary(wanted, step, values, seconds)
                for write in writers:
                    write(step, record)
                bar.set_description(f"loss {record['loss']:.4f}")
                window, seconds = [], 0.0
            if trouble is not None:
                store.wait()
                good = store.steps()
                kept = f"step {good[-1]} is saved" if good else "no step is saved"
                raise DivergedError(f"training diverged: {trouble}; {kept}. {_ADVICE}")
            timer = time.perf_counter()
    if stopping:
        store.wait()
        by = f"stopped by {signals.heard or 'a signal to another process'}"
        if store.steps():
            raise StoppedError(f"{by}; step {step} is saved. Rerun to resume.")
        raise StoppedError(f"{by} before the first step. Rerun to start again.")
    trained: TrainState = jax.tree.map(np.asarray, parallel.unreplicate(state))
    return Restored(trained, opened.digest(trained))


def _summary(
    wanted: Settings, step: int, values: dict[str, np.ndarray], seconds: float
) -> log.Record:
    count = len(values["loss"])
    return {
        **{name: float(np.mean(value)) for name, value in sorted(values.items())},
        "learning_rate": float(experiment.learning_rate(wanted)(step - 1)),
        "steps_per_second": count / seconds,
        "examples_per_second": count * wanted.train.batch_size / seconds,
    }


def _fetch(window: Sequence[_Metrics]) -> dict[str, np.ndarray]:
    """Waits for the device; returns the values of each metric at all steps of the window."""
    host = [(count, jax.device_get(parallel.unreplicate(m))) for count, m in window]
    return {k: np.concatenate([m[k][:count] for count, m in host]) for k in host[0][1]}


def find_trouble(
    numbers: np.ndarray, values: dict[str, np.ndarray], output: str, wanted: Settings
) -> str | None:
    """Returns a message about the first metric that exceeded its limits, or `None`.

    Values are those at the steps `numbers`, [T] each; `output` is what the network returns.
    """
    kind = "log ratio" if output == "log_ratio" else "ratio"
    most = wanted.train.max_log_ratio if kind == "log ratio" else _MAX_RATIO
    limits = dict.fromkeys(("loss", "grad_norm", "drift_norm"), np.inf)
    limits |= dict.fromkeys(("output_real", "output_flowed"), most)
    for (i, step), name in itertools.product(enumerate(numbers), limits):
        value = float(values[name][i]) if name in values else 0.0  # Classifiers have fewer.
        if not np.isfinite(value):
            return f"{name} is {value} at step {step}"
        if abs(value) >= limits[name]:
            return f"the mean {kind} ({name}) saturated at {value:.4g} at step {step}"
    return None

"""The metric during training, and the checkpoint that is best by it, kept beside the newest."""

import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.build import Experiment
from experiments.sampling.draw import SampleFn
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir, read_json, write_json
from experiments.training.metrics_log import PREFIX, Record
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def read(workdir: Workdir) -> dict[str, Any] | None:
    """Returns step, metric, value and folder of the best checkpoint, if there is one."""
    record = workdir.best / "best.json"
    return read_json(record) if record.exists() else None


def folder(workdir: Workdir) -> Path | None:
    """Returns the folder of the best checkpoint, as `Checkpoints` reads it."""
    best = read(workdir)
    return workdir.best / best["folder"] if best else None


class Judge:
    """Takes the cheap metric of a run's samples and keeps the checkpoint that is best by it.

    Samples have keys of their own, and the state is only read: training goes on as if nothing had
    happened.
    """

    def __init__(
        self, experiment: Experiment, workdir: Workdir, sample: SampleFn, constants: Any
    ) -> None:
        self._experiment = experiment
        self._workdir = workdir
        self._sample = sample
        self._constants = constants

    def judge(self, replicated: TrainState) -> Record:
        """Returns the metric under its name in the log; the state is saved if it is the best."""
        # Only now: judges take seconds to import, and most runs need none before their end.
        from experiments.evaluation import cheap_metric

        experiment = self._experiment
        variables = experiment.sampling_variables(replicated)
        samples = self._sample(variables, self._constants, experiment.judged_samples)
        # The same numbers on every process, but perhaps not to the last bit: the first decides.
        metric = cheap_metric(experiment.source, samples.refined)
        best = read(self._workdir)
        # A value of another metric, or on another number of samples, is no match for this one.
        before = best["value"] if best and best["metric"] == metric.name else math.inf
        sign = 1.0 if metric.lower_is_better else -1.0
        improved = math.isfinite(metric.value) and sign * metric.value < sign * before
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            state = jax.tree.map(np.asarray, parallel.unreplicate(replicated))
            self._save(state, metric.name, metric.value, best)
        return {PREFIX + metric.name: metric.value}

    def _save(
        self, train_state: TrainState, metric: str, value: float, best: dict[str, Any] | None
    ) -> None:
        # Each in a folder of its own, to which the record points: a crash leaves the one before,
        # and a run that was rolled back may come to an earlier step.
        number = int(best["folder"]) + 1 if best else 0
        target = self._workdir.best / str(number)
        if parallel.is_first_process():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        parallel.barrier("place for the best checkpoint")
        store = Checkpoints(target, keep=1)
        store.save(train_state, self._experiment.settings)
        store.close()
        if parallel.is_first_process():
            record = {"folder": str(number), "metric": metric, "value": value}
            write_json(self._workdir.best / "best.json", {**record, "step": int(train_state.step)})
            if best:
                shutil.rmtree(self._workdir.best / best["folder"], ignore_errors=True)

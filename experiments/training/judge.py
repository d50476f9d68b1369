"""The metric during training, which chooses the best checkpoint."""

import math
from typing import Any

import jax
import numpy as np

from experiments.build import Experiment
from experiments.sampling.draw import SampleFn
from experiments.storage import best
from experiments.storage.workdir import Workdir
from experiments.training.metrics_log import PREFIX, Record
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


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
        self._reference: Any = None

    def judge(self, replicated: TrainState) -> Record:
        """Returns the metric under its name in the log; the state is saved if it is the best."""
        # Only now: judges take seconds to import, and most runs need none before their end.
        from experiments.evaluation import references
        from experiments.evaluation.cheap import cheap_metric

        if self._reference is None:
            self._reference = references.of(self._experiment.source)
        experiment = self._experiment
        variables = experiment.sampling_variables(replicated)
        samples = self._sample(variables, self._constants, experiment.judged_samples)
        # The same numbers on every process, but perhaps not to the last bit: the first decides.
        metric = cheap_metric(self._reference, samples.refined)
        record = best.read(self._workdir)
        # A value of another metric, or on another number of samples, is no match for this one.
        before = record["value"] if record and record["metric"] == metric.name else math.inf
        sign = 1.0 if metric.lower_is_better else -1.0
        improved = math.isfinite(metric.value) and sign * metric.value < sign * before
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            state = jax.tree.map(np.asarray, parallel.unreplicate(replicated))
            best.replace(
                self._workdir,
                record,
                state,
                experiment.settings,
                metric=metric.name,
                value=metric.value,
            )
        return {PREFIX + metric.name: metric.value}

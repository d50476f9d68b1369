"""Hooks for training a density ratio: snapshots, and the search for the best checkpoint."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.build import Experiment
from experiments.files import replacing
from experiments.run import Run
from experiments.sampling.draw import SampleFn, make_sample_fn
from experiments.training.loop import Hook, Moment
from experiments.training.metrics_log import PREFIX, Record
from fdrl_jax import parallel


def hooks_of(experiment: Experiment, run: Run) -> Sequence[Hook]:
    """Returns the hooks for training a density ratio."""
    sample, settings = make_sample_fn(experiment), experiment.settings
    return (
        Hook(settings["evaluate.every_steps"], _Monitor(experiment, run, sample)),
        Hook(settings["snapshot.every_steps"], _Snapshots(experiment, run, sample)),
    )


class _Snapshots:
    """Writes samples during training, for the picture of its progress."""

    def __init__(self, experiment: Experiment, run: Run, sample: SampleFn) -> None:
        self._experiment, self._run, self._sample = experiment, run, sample

    def __call__(self, moment: Moment) -> None:
        variables = self._experiment.sampling_variables(moment.state)
        num = self._experiment.settings["snapshot.num_samples"]
        samples = self._sample(variables, moment.constants, num)
        if parallel.is_first_process():
            self._run.snapshots.mkdir(exist_ok=True)
            with replacing(self._run.snapshots / f"{moment.step:08d}.npz") as file:
                np.savez_compressed(file, arr_0=samples.refined)


class _Monitor:
    """Computes the cheap metric of samples, and saves the best checkpoint by this metric.

    Training is not affected: samples use separate keys, and the state is only read.
    """

    def __init__(self, experiment: Experiment, run: Run, sample: SampleFn) -> None:
        self._experiment, self._run, self._sample = experiment, run, sample

    def __call__(self, moment: Moment) -> Record:
        # Importing metrics takes seconds, and most runs need none until the end.
        from experiments.evaluation.cheap import cheap_metric

        variables = self._experiment.sampling_variables(moment.state)
        num = self._experiment.settings["evaluate.num_monitored_samples"]
        samples = self._sample(variables, moment.constants, num)
        metric = cheap_metric(self._run.metric_reference(), samples.refined)
        sign, best = (1.0 if metric.lower_is_better else -1.0), moment.best
        # Values of another metric, or for another number of samples, are not comparable.
        before = sign * best["value"] if best and best["metric"] == metric.name else math.inf
        improved = math.isfinite(metric.value) and sign * metric.value < before
        # The values on different processes may differ in the last bit, so the first one decides.
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            moment.save(metric.name, metric.value)
        return {PREFIX + metric.name: metric.value}

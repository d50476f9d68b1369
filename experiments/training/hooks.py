"""What the training of a density ratio does along the way: snapshots, and finding the best."""

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
    """Returns what the training of a density ratio does along the way."""
    sample, settings = make_sample_fn(experiment), experiment.settings
    return (
        Hook(settings["evaluate.every_steps"], _Monitor(experiment, run, sample)),
        Hook(settings["snapshot.every_steps"], _Snapshots(experiment, run, sample)),
    )


class _Snapshots:
    """Writes samples during training, for the picture of its course."""

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
    """Computes the cheap metric of a run's samples, and saves the checkpoint that is best by it.

    Samples have keys of their own, and the state is only read: training is not affected.
    """

    def __init__(self, experiment: Experiment, run: Run, sample: SampleFn) -> None:
        self._experiment, self._run, self._sample = experiment, run, sample

    def __call__(self, moment: Moment) -> Record:
        # Only now: metrics take seconds to import, and most runs need none before their end.
        from experiments.evaluation.cheap import cheap_metric

        variables = self._experiment.sampling_variables(moment.state)
        num = self._experiment.settings["evaluate.num_monitored_samples"]
        samples = self._sample(variables, moment.constants, num)
        metric = cheap_metric(self._run.metric_reference(), samples.refined)
        sign, best = (1.0 if metric.lower_is_better else -1.0), moment.best
        # A value of another metric, or on another number of samples, does not compare.
        before = sign * best["value"] if best and best["metric"] == metric.name else math.inf
        improved = math.isfinite(metric.value) and sign * metric.value < before
        # The same numbers on every process, but perhaps not to the last bit: the first decides.
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            moment.save(metric.name, metric.value)
        return {PREFIX + metric.name: metric.value}

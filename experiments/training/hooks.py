"""Hooks for training a density ratio: snapshots, and the search for the best checkpoint."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.build import Experiment
from experiments.files import replacing
from experiments.run import Run
from experiments.sampling.draw import Sampler
from experiments.training.loop import Hook, Moment
from experiments.training.metrics_log import PREFIX, Record
from fdrl_jax.training import parallel


def hooks_of(experiment: Experiment, run: Run) -> Sequence[Hook]:
    """Returns what the training of a density ratio does along the way.

    Training is not affected: samples use separate keys, and the state is only read.
    """
    sample, settings = Sampler(experiment), experiment.settings

    def draw(moment: Moment, num_samples: int) -> np.ndarray:
        variables = experiment.sampling_variables(moment.state)
        return sample(variables, moment.constants, {"refined": num_samples})["refined"]

    def write_snapshot(moment: Moment) -> None:
        """Writes samples, for the picture of the course of training."""
        samples = draw(moment, settings["snapshot.num_samples"])
        if parallel.is_first_process():
            run.snapshots.mkdir(exist_ok=True)
            with replacing(run.snapshots / f"{moment.step:08d}.npz") as file:
                np.savez_compressed(file, arr_0=samples)

    def monitor(moment: Moment) -> Record:
        """Computes the cheap metric of samples, and saves the checkpoint that is best by it."""
        # Importing metrics takes seconds, and most runs need none until the end.
        from experiments.evaluation.cheap import cheap_metric

        samples = draw(moment, settings["evaluate.num_monitored_samples"])
        metric = cheap_metric(run.metric_reference, samples)
        best = moment.best
        # Values of another metric, or for another number of samples, are not comparable.
        before = best["value"] if best and best["metric"] == metric.name else math.inf
        improved = math.isfinite(metric.value) and metric.value < before
        # The values on different processes may differ in the last bit, so the first one decides.
        if bool(parallel.any_process(improved and parallel.is_first_process())):
            moment.save_best(metric.name, metric.value)
        return {PREFIX + metric.name: metric.value}

    return (
        Hook(settings["evaluate.every_steps"], monitor),
        Hook(settings["snapshot.every_steps"], write_snapshot),
    )

"""The metric of samples against the length of their flow, and against the step of training."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from experiments.build import Experiment
from experiments.evaluation import references
from experiments.evaluation.cheap import CheapMetric, cheap_metric
from experiments.request import CheckpointStep
from experiments.sampling import runs
from experiments.sampling.draw import (
    batch_at,
    batch_size,
    make_sample_fn,
    on_devices,
    sample_starts,
)
from experiments.storage import best
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir
from fdrl_jax import parallel, samplers
from fdrl_jax.problem import FlowParams
from fdrl_jax.state import TrainState

Point = tuple[int, CheapMetric]
_BEYOND_STEPS = 50  # How far beyond K the curve goes if nothing else is asked for.
_MOST_POINTS = 20


def choose_lengths(flow: FlowParams) -> tuple[int, ...]:
    """Returns round lengths from 0 to K + 50, with K and K + κ among them."""
    longest = flow.num_steps + _BEYOND_STEPS
    stride = next(
        factor * 10**power
        for power in range(6)
        for factor in (1, 2, 5)
        if longest <= _MOST_POINTS * factor * 10**power
    )
    marked = {flow.num_steps, flow.num_steps + flow.num_refine_steps, longest}
    return tuple(sorted({*range(0, longest + 1, stride), *marked}))


def over_length(
    experiment: Experiment, train_state: TrainState, lengths: tuple[int, ...], num_samples: int
) -> Iterator[Point]:
    """Takes the metric at several lengths of one flow (fig. 8).

    All samples go from one length to the next together, so that every step is taken once, and no
    more than one set of samples is in memory however many lengths there are.

    Args:
      experiment: what the samples follow from.
      train_state: one replica.
      lengths: increasing numbers of steps.
      num_samples: at each length.
    """
    reference = references.of(experiment.source)
    stride = math.gcd(*lengths) or 1
    segment = samplers.make_segment(experiment.problem, seed=experiment.seed, num_steps=stride)
    advance = parallel.map_segment(segment)
    variables, constants = on_devices(experiment, train_state)
    size = batch_size(experiment, num_samples)
    batches = [np.arange(i, i + size, dtype=np.int32) for i in range(0, num_samples, size)]
    starts = sample_starts(experiment, train_state, size * len(batches))
    points = np.split(starts, len(batches))
    done = 0
    with tqdm(
        total=lengths[-1] * len(batches),
        unit="step",
        desc="flowing",
        disable=not parallel.is_first_process(),
    ) as bar:
        for length in lengths:
            for i, positions in enumerate(batches):
                for first_step in range(done, length, stride):
                    batch = {**batch_at(experiment, positions), "x": points[i]}
                    part = parallel.shard({k: parallel.local_part(v) for k, v in batch.items()})
                    moved = parallel.gather(advance(variables, constants, part, first_step))
                    points[i] = np.asarray(moved)
                    bar.update(stride)
            done = length
            yield length, cheap_metric(reference, np.concatenate(points)[:num_samples])


def over_step(experiment: Experiment, workdir: Workdir, num_samples: int) -> Iterator[Point]:
    """Takes the metric at every checkpoint that is kept, the best by it among them."""
    store = Checkpoints(workdir.checkpoints, experiment.num_checkpoints)
    with contextlib.closing(store):
        kept: dict[int, CheckpointStep] = {step: step for step in store.steps()}
    found = best.read(workdir)
    if found is not None:
        kept.setdefault(found["step"], "best")
    sample = make_sample_fn(experiment)
    constants = parallel.replicate(experiment.constants)
    reference = references.of(experiment.source)
    for step, name in sorted(kept.items()):
        train_state = runs.restore(experiment, workdir, name)
        variables = parallel.replicate(experiment.sampling_variables(train_state))
        samples = sample(variables, constants, num_samples, progress=True)
        yield step, cheap_metric(reference, samples.refined)

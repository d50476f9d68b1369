"""Curves of the metric of samples over the length of the flow, and over train steps."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from experiments.errors import UserError
from experiments.evaluation.cheap import cheap_metric
from experiments.evaluation.metrics import Metric
from experiments.sampling.draw import Sampler, batch_at, batch_size, on_devices, sample_starts
from experiments.sampling.opened import Opened
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.problem import FlowParams

Point = tuple[int, Metric]
_BEYOND_STEPS = 50  # Steps beyond K in the default curve.
_MAX_POINTS = 20


def choose_lengths(flow: FlowParams) -> tuple[int, ...]:
    """Returns round lengths from 0 to K + 50, including K and K + κ."""
    longest = flow.num_steps + _BEYOND_STEPS
    strides = (factor * 10**power for power in range(6) for factor in (1, 2, 5))
    stride = next(stride for stride in strides if longest <= _MAX_POINTS * stride)
    marked = {flow.num_steps, flow.num_steps + flow.num_refine_steps, longest}
    return tuple(sorted({*range(0, longest + 1, stride), *marked}))


def over_length(opened: Opened, lengths: tuple[int, ...], num_samples: int) -> Iterator[Point]:
    """Computes the metric at several lengths of one flow (fig. 8).

    All samples advance together from one length to the next. Every step is computed only once, and
    memory does not depend on the number of lengths. The lengths increase.
    """
    experiment, state = opened.experiment, opened.checkpoint.state
    reference = opened.run.metric_reference
    stride = math.gcd(*lengths) or 1
    advance = parallel.map_segment(samplers.make_segment(experiment.problem, num_steps=stride))
    variables, constants = on_devices(experiment, state)
    key, size = experiment.root_key, batch_size(experiment, num_samples)
    # All batches have one size; the last one repeats the last sample.
    numbers = np.arange(-(-num_samples // size) * size, dtype=np.int32)
    batches = np.minimum(numbers, num_samples - 1).reshape(-1, size)
    points = list(sample_starts(experiment, state, num_samples)[batches])
    with tqdm(
        total=lengths[-1] * len(batches),
        unit="step",
        desc="flowing",
        disable=not parallel.is_first_process(),
    ) as bar:
        for done, length in itertools.pairwise((0, *lengths)):
            for i, positions in enumerate(batches):
                for first_step in range(done, length, stride):
                    batch = {**batch_at(experiment, positions), "x": points[i]}
                    part = parallel.shard({k: parallel.local_part(v) for k, v in batch.items()})
                    moved = advance(key, variables, constants, part, first_step)
                    points[i] = np.asarray(parallel.gather(moved))
                    bar.update(stride)
            yield length, cheap_metric(reference, np.concatenate(points)[:num_samples])


def over_step(opened: Opened, num_samples: int) -> Iterator[Point]:
    """Computes the metric at every checkpoint on disk."""
    experiment, reference = opened.experiment, opened.run.metric_reference
    with opened.run.saved_checkpoints() as store:
        steps = store.steps()
    sample = Sampler(experiment)
    for step in steps:
        try:
            state = opened.run.restored(experiment.state_shapes(), step).state
        except UserError:
            with opened.run.saved_checkpoints() as store:
                if step in store.steps():
                    raise
            continue  # A training in progress has removed it.
        keep = {"refined": num_samples}
        samples = sample(*on_devices(experiment, state), keep, progress=True)["refined"]
        yield step, cheap_metric(reference, samples)

"""Samples from a trained estimator: batches over all devices, sample `i` always the same."""

from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from experiments.build import Experiment
from fdrl_jax import parallel, steps
from fdrl_jax.flow import TwoStage
from fdrl_jax.state import TrainState


class SampleFn(Protocol):
    """`(replicated variables, replicated constants, num) -> TwoStage` of numpy arrays [num, ...]."""

    def __call__(
        self, variables: Any, constants: Any, num_samples: int, progress: bool = False
    ) -> TwoStage: ...


def sample_state(experiment: Experiment, train_state: TrainState, num_samples: int) -> TwoStage:
    """Draws samples with the averaged parameters of a train state (one replica)."""
    variables = parallel.replicate(train_state.ema_variables)
    constants = parallel.replicate(experiment.constants)
    return make_sample_fn(experiment)(variables, constants, num_samples, progress=True)


def make_sample_fn(experiment: Experiment) -> SampleFn:
    """Builds the sampler of an experiment, compiled once a batch size."""
    sampler = parallel.map_sampler(steps.make_sampler(experiment.problem, seed=experiment.seed))
    num_devices = parallel.num_devices()

    def sample(
        variables: Any, constants: Any, num_samples: int, progress: bool = False
    ) -> TwoStage:
        largest = min(experiment.sampling_batch_size, num_samples)
        # Every device takes the same number, so the batch is rounded up to whole rounds.
        size = -(-largest // num_devices) * num_devices
        parts = []
        with tqdm(total=num_samples, unit="sample", disable=not progress, desc="sampling") as bar:
            for first in range(0, num_samples, size):
                positions = np.arange(first, first + size, dtype=np.int32)
                batch = parallel.shard({"position": positions})
                part = parallel.gather(sampler(variables, constants, batch))
                parts.append([np.asarray(stage) for stage in part])
                bar.update(min(size, num_samples - first))
        return TwoStage(*(np.concatenate(s)[:num_samples] for s in zip(*parts, strict=True)))

    return sample

"""Samples from a trained estimator: batches over all devices, sample `i` always the same."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from experiments.build import Experiment
from fdrl_jax import parallel, samplers
from fdrl_jax.state import TrainState


class Samples(NamedTuple):
    """Samples on the host, [N, ...]: of the prior `x_0`, bridged `x_K` and refined `x_{K+κ}`."""

    prior: np.ndarray
    bridged: np.ndarray
    refined: np.ndarray


class SampleFn(Protocol):
    """`(replicated variables, replicated constants, num) -> Samples` on the host, [num, ...]."""

    def __call__(
        self, variables: Any, constants: Any, num_samples: int, progress: bool = False
    ) -> Samples: ...


def sample_state(experiment: Experiment, train_state: TrainState, num_samples: int) -> Samples:
    """Draws samples with the averaged parameters of a train state (one replica)."""
    variables = parallel.replicate(train_state.ema_variables)
    constants = parallel.replicate(experiment.constants)
    return make_sample_fn(experiment)(variables, constants, num_samples, progress=True)


def batch_at(experiment: Experiment, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the sampler reads for the samples at these positions.

    For paired domains that is the images to start from: held-out ones first.
    """
    starts = experiment.source.starts
    batch = {"position": positions}
    return batch if starts is None else {**batch, "source": starts(positions)}


def make_sample_fn(experiment: Experiment) -> SampleFn:
    """Builds the sampler of an experiment, compiled once a batch size."""
    sampler = parallel.map_sampler(samplers.make_sampler(experiment.problem, seed=experiment.seed))
    num_replicas = parallel.num_replicas()

    def sample(variables: Any, constants: Any, num_samples: int, progress: bool = False) -> Samples:
        largest = min(experiment.sampling_batch_size, num_samples)
        # Every device takes the same number, so the batch is rounded up to whole rounds.
        size = -(-largest // num_replicas) * num_replicas
        parts = []
        with tqdm(total=num_samples, unit="sample", disable=not progress, desc="sampling") as bar:
            for first in range(0, num_samples, size):
                positions = np.arange(first, first + size, dtype=np.int32)
                batch = parallel.shard(batch_at(experiment, parallel.local_part(positions)))
                part = parallel.gather(sampler(variables, constants, batch))
                parts.append([np.asarray(stage) for stage in part])
                bar.update(min(size, num_samples - first))
        return Samples(*(np.concatenate(s)[:num_samples] for s in zip(*parts, strict=True)))

    return sample

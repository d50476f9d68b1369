"""Draws samples from a trained estimator in batches over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments import build
from experiments.build import Experiment
from experiments.samples import Samples
from fdrl_jax import parallel, rng, samplers
from fdrl_jax.state import TrainState


def on_devices(experiment: Experiment, train_state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, replicated on every device."""
    variables = experiment.sampling_variables(train_state)
    return parallel.replicate(variables), build.on_devices(experiment.constants)


def sample_state(experiment: Experiment, train_state: TrainState, num_samples: int) -> Samples:
    """Draws samples of a train state (one replica)."""
    variables, constants = on_devices(experiment, train_state)
    return Sampler(experiment)(variables, constants, num_samples, progress=True)


def sample_starts(experiment: Experiment, train_state: TrainState, num_samples: int) -> np.ndarray:
    """Returns where the first samples start, `x_0` [num_samples, ...], without flowing them."""
    sampler = samplers.make_start_sampler(experiment.problem)
    variables, constants = on_devices(experiment, train_state)
    drawn: np.ndarray = _in_batches(
        experiment, parallel.map_sampler(sampler), variables, constants, num_samples
    )
    return drawn


def batch_at(experiment: Experiment, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the batch that the sampler reads for the samples at these positions.

    For paired domains it has the images to start from, held-out images first. For class-conditional
    samples it has the classes.
    """
    starts, labels = experiment.source.starts, experiment.labels
    batch = {"position": positions}
    if starts is not None:
        batch["source"] = starts(positions)
    if labels is not None:
        batch["label"] = labels(positions)
    return batch


def sampling_key(experiment: Experiment) -> jax.Array:
    """Returns the root key of all samples of a run."""
    return rng.root_key(experiment.settings["seed"])


def batch_size(experiment: Experiment, num_samples: int) -> int:
    """Returns the number of samples per batch, which is a multiple of the number of devices."""
    num_replicas = parallel.num_replicas()
    return (
        -(-min(experiment.settings["evaluate.batch_size"], num_samples) // num_replicas)
        * num_replicas
    )


class Sampler:
    """Draws samples of an experiment over all devices; compiled once per batch size."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._mapped = parallel.map_sampler(samplers.make_sampler(experiment.problem))

    def __call__(
        self,
        variables: Any,
        constants: Any,
        num_samples: int,
        *,
        first: int = 0,
        progress: bool = False,
    ) -> Samples:
        """Returns samples on the host, [num_samples, ...].

        Args:
          variables: on every device.
          constants: on every device.
          num_samples: how many.
          first: number of the first one.
          progress: whether a bar is shown.
        """
        arguments = (self._experiment, self._mapped, variables, constants, num_samples)
        return Samples(*_in_batches(*arguments, first=first, progress=progress))


def _in_batches(
    experiment: Experiment,
    mapped: Callable[..., Any],
    variables: Any,
    constants: Any,
    num_samples: int,
    *,
    first: int = 0,
    progress: bool = False,
) -> Any:
    size, key, parts = batch_size(experiment, num_samples), sampling_key(experiment), []
    with tqdm(total=num_samples, unit="sample", disable=not progress, desc="sampling") as bar:
        for offset in range(0, num_samples, size):
            positions = np.arange(first + offset, first + offset + size, dtype=np.int32)
            batch = parallel.shard(batch_at(experiment, parallel.local_part(positions)))
            part = parallel.gather(mapped(key, variables, constants, batch))
            parts.append(jax.tree.map(np.asarray, part))
            bar.update(min(size, num_samples - offset))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_samples], *parts)

"""Draws samples from a trained estimator in batches over all devices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments import build
from experiments.build import Experiment
from experiments.evaluation import Samples
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.state import TrainState

_SMALLEST_RATIO = 1e-6


class Sampler:
    """Draws samples of an experiment over all devices; compiled once per batch size.

    Devices return only the given stages: "prior", "bridged", "refined".
    """

    def __init__(self, experiment: Experiment, stages: Sequence[str] = ("refined",)) -> None:
        sample = samplers.make_sampler(experiment.problem)
        start = samplers.make_start_sampler(experiment.problem)

        def draw(*arguments: Any) -> dict[str, jax.Array]:
            if tuple(stages) == ("prior",):
                return {"prior": start(*arguments)}  # Without the flow.
            drawn = sample(*arguments)
            return {stage: getattr(drawn, stage) for stage in stages}

        self._experiment, self._mapped = experiment, parallel.map_sampler(draw)

    def __call__(
        self,
        variables: Any,
        constants: Any,
        keep: Mapping[str, int],
        *,
        first: int = 0,
        full: int | None = None,
        progress: bool = False,
    ) -> dict[str, np.ndarray]:
        """Returns as many samples of each stage as `keep` says, on the host, [num_samples, ...].

        They start with the sample number `first`; other samples never leave a device. Variables and
        constants are those of `on_devices`. Batches are as large as for a `full` number of samples,
        if it is given, so that fewer samples run the same compiled program.
        """
        experiment, num = self._experiment, max(keep.values())
        size, key = batch_size(experiment, full or num), experiment.root_key
        kept: dict[str, np.ndarray] = {}
        with tqdm(total=num, unit="sample", disable=not progress, desc="sampling") as bar:
            for offset in range(0, num, size):
                # The last batch is as large as the others, so that only one program is compiled. It
                # repeats the last sample, because there may be no image to start further ones from.
                numbers = np.minimum(np.arange(offset, offset + size, dtype=np.int32), num - 1)
                positions = parallel.local_part(first + numbers)
                batch = parallel.shard(batch_at(experiment, positions))
                drawn = self._mapped(key, variables, constants, batch)
                for stage, part in drawn.items():
                    if offset < keep[stage]:
                        values = np.asarray(parallel.gather(part))
                        if stage not in kept:
                            kept[stage] = np.empty((keep[stage], *values.shape[1:]), values.dtype)
                        rows = kept[stage][offset : offset + size]
                        rows[:] = values[: len(rows)]
                bar.update(min(size, num - offset))
        return kept


def on_devices(experiment: Experiment, train_state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, on the devices."""
    variables = experiment.sampling_variables(train_state)
    return parallel.replicate(variables), build.on_devices(experiment.constants)


def sample_state(
    experiment: Experiment,
    train_state: TrainState,
    num_samples: int,
    *,
    num_prior: int = 0,
    num_bridged: int = 0,
) -> Samples:
    """Draws samples of a train state (one replica).

    Of the same samples, `num_prior` are kept where they start and `num_bridged` after K steps; both
    are at most `num_samples`.
    """
    keep = {"prior": num_prior, "bridged": num_bridged, "refined": num_samples}
    sample = Sampler(experiment, [stage for stage, num in keep.items() if num])
    drawn = sample(*on_devices(experiment, train_state), keep, progress=True)
    none = np.empty((0, *experiment.source.event_shape), np.float32)
    return Samples(**{stage: drawn.get(stage, none) for stage in keep})


def sample_starts(experiment: Experiment, train_state: TrainState, num_samples: int) -> np.ndarray:
    """Returns where the first samples start, `x_0` [num_samples, ...], without flowing them."""
    sample = Sampler(experiment, ("prior",))
    return sample(*on_devices(experiment, train_state), {"prior": num_samples})["prior"]


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


def batch_size(experiment: Experiment, num_samples: int) -> int:
    """Returns the number of samples per batch, which is a multiple of the number of devices."""
    num_replicas = parallel.num_replicas()
    wanted = min(experiment.settings["evaluate.batch_size"], num_samples)
    return -(-wanted // num_replicas) * num_replicas


def make_log_ratio(
    experiment: Experiment, train_state: TrainState
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the estimate `x [B, ...] -> log r(x) [B]` with the parameters that sampling uses."""
    problem = experiment.problem
    variables = experiment.sampling_variables(train_state)
    apply = jax.jit(problem.estimator.apply)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        out = np.asarray(apply(variables, x))
        if problem.output == "log_ratio":
            return out
        # An unconstrained ratio may be negative, and then has no logarithm.
        return np.log(np.maximum(out, _SMALLEST_RATIO))

    return log_ratio

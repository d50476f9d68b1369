"""Draws samples of a density ratio: in batches over all devices, along the flow, between points."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import experiment
from experiments.evaluation import Samples
from experiments.experiment import Experiment
from fdrl_jax import interpolation
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.state import TrainState

_SMALLEST_RATIO = 1e-6
_NUM_PATHS, _NUM_POINTS = 6, 11  # Of a picture of interpolations.


class Sampler:
    """Draws samples of an experiment over all devices; compiled once per batch size.

    Devices return only the given stages: "prior", "bridged", "refined".
    """

    def __init__(self, model: Experiment, stages: Sequence[str] = ("refined",)) -> None:
        both = samplers.make_sampler(model.problem)
        start = samplers.make_start_sampler(model.problem)

        def draw(*arguments: Any) -> dict[str, jax.Array]:
            if tuple(stages) == ("prior",):
                return {"prior": start(*arguments)}  # Without the flow.
            drawn = both(*arguments)
            return {stage: getattr(drawn, stage) for stage in stages}

        self._model, self._mapped = model, parallel.map_sampler(draw)

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
        so that fewer samples run the same compiled program.
        """
        num = max(keep.values())
        size, key = batch_size(self._model, full or num), self._model.root_key
        kept: dict[str, np.ndarray] = {}
        with tqdm(total=num, unit="sample", disable=not progress, desc="sampling") as bar:
            for offset in range(0, num, size):
                # The last batch is as large as the others, so that only one program is compiled. It
                # repeats the last sample, because there may be no image to start further ones from.
                numbers = np.minimum(np.arange(offset, offset + size, dtype=np.int32), num - 1)
                positions = parallel.local_part(first + numbers)
                batch = parallel.shard(batch_at(self._model, positions))
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


def on_devices(model: Experiment, state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, on the devices."""
    variables = model.sampling_variables(state)
    return parallel.replicate(variables), experiment.on_devices(model.constants)


def sample_state(
    model: Experiment,
    state: TrainState,
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
    draw = Sampler(model, [stage for stage, num in keep.items() if num])
    drawn = draw(*on_devices(model, state), keep, progress=parallel.is_first_process())
    none = np.empty((0, *model.source.event_shape), np.float32)
    return Samples(**{stage: drawn.get(stage, none) for stage in keep})


def sample_starts(model: Experiment, state: TrainState, num_samples: int) -> np.ndarray:
    """Returns where the first samples start, `x_0` [num_samples, ...], without flowing them."""
    draw = Sampler(model, ("prior",))
    return draw(*on_devices(model, state), {"prior": num_samples})["prior"]


def paths(model: Experiment, state: TrainState, num_samples: int) -> np.ndarray:
    """Returns the first samples on their way, `x_0 ... x_{K+κ}`, [K + κ + 1, num_samples, ...]."""
    draw = jax.jit(samplers.make_path_sampler(model.problem))
    batch = batch_at(model, np.arange(num_samples, dtype=np.int32))
    return np.asarray(draw(model.root_key, model.sampling_variables(state), model.constants, batch))


def interpolations(
    model: Experiment, state: TrainState
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns points between samples of the prior, and their samples, by kind of interpolation.

    Both are [paths, points, H, W, C]. All points of a path use the same noise, so they differ only
    in their start.
    """
    problem, key = model.problem, model.root_key
    num_steps = problem.flow.num_steps + problem.flow.num_refine_steps
    start = jax.jit(samplers.make_start_sampler(problem))
    advance = jax.jit(samplers.make_segment(problem, num_steps=num_steps))
    variables = model.sampling_variables(state)
    ends = batch_at(model, np.arange(2 * _NUM_PATHS, dtype=np.int32))
    x0 = start(key, variables, model.constants, ends)
    centre = model.constants.prior
    # The centre of a Gaussian is its mean, that of other priors is zero.
    mean = jnp.reshape(centre["mean"], x0.shape[1:]) if "mean" in centre else jnp.zeros(())
    weights = jnp.linspace(0.0, 1.0, _NUM_POINTS)

    def sheet(between: Callable[..., jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        points = jax.vmap(lambda a, b: between(a, b, weights))(x0[::2] - mean, x0[1::2] - mean)
        flat = (points + mean).reshape(-1, *x0.shape[1:])
        batch = {"position": np.repeat(ends["position"][::2], _NUM_POINTS), "x": flat}
        moved = advance(key, variables, model.constants, batch, 0)
        shape = (_NUM_PATHS, _NUM_POINTS, *x0.shape[1:])
        return np.asarray(flat).reshape(shape), np.asarray(moved).reshape(shape)

    return {
        "spherical": sheet(interpolation.spherical),
        "linear": sheet(interpolation.linear),
    }


def batch_at(model: Experiment, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the batch that the sampler reads for the samples at these positions.

    It may have the images to start from, held-out images first, and the classes.
    """
    batch = {"position": positions}
    if model.source.starts is not None:
        batch["source"] = model.source.starts(positions)
    if model.labels is not None:
        batch["label"] = model.labels(positions)
    return batch


def batch_size(model: Experiment, num_samples: int) -> int:
    """Returns the number of samples per batch, which is a multiple of the number of devices."""
    num_replicas = parallel.num_replicas()
    wanted = min(model.settings.evaluate.batch_size, num_samples)
    return -(-wanted // num_replicas) * num_replicas


def make_log_ratio(model: Experiment, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the estimate `x [B, ...] -> log r(x) [B]` with the parameters that sampling uses."""
    variables = model.sampling_variables(state)
    apply = jax.jit(model.problem.estimator.apply)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        out = np.asarray(apply(variables, x))
        if model.problem.output == "log_ratio":
            return out
        # An unconstrained ratio may be negative, and then has no logarithm.
        return np.log(np.maximum(out, _SMALLEST_RATIO))

    return log_ratio

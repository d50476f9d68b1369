"""Draws samples of a density ratio, in batches over all devices, and evaluates the ratio."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments import devices
from experiments.evaluation import Samples
from experiments.experiment import Experiment
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.state import TrainState

# `(variables, constants, {stage: number of samples}) -> {stage: samples [number, ...]}`.
Draw = Callable[..., dict[str, np.ndarray]]


def make(model: Experiment, stages: Sequence[str] = ("refined",)) -> Draw:
    """Returns the function that draws the first samples of the stages over all devices."""
    mapped = parallel.map_sampler(samplers.make_sampler(model.problem, stages))

    def draw(
        variables: Any, constants: Any, keep: Mapping[str, int], *, progress: bool = False
    ) -> dict[str, np.ndarray]:
        batches = positions(model, max(keep.values()))
        parts: dict[str, list[np.ndarray]] = {}
        bar = tqdm(batches, unit="batch", disable=not progress, desc="sampling")
        for numbers in bar:
            batch = batch_at(model, devices.local_part(numbers))
            found = mapped(model.root_key, variables, constants, parallel.shard(batch))
            for stage in keep:
                if numbers[0] < keep[stage]:  # Other samples never leave a device.
                    values = np.asarray(parallel.gather(found[stage]))
                    parts.setdefault(stage, []).append(values[: keep[stage] - numbers[0]])
        return {stage: np.concatenate(values) for stage, values in parts.items()}

    return draw


def on_devices(model: Experiment, state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, on the devices."""
    return parallel.replicate(state.ema_variables), parallel.replicate(model.constants)


def sample_state(
    model: Experiment, state: TrainState, num: int, *, num_prior: int = 0, num_bridged: int = 0
) -> Samples:
    """Draws samples of a train state (one replica), and keeps these numbers of each stage."""
    wanted = zip(Samples._fields, (num_prior, num_bridged, num), strict=True)
    keep = {stage: count for stage, count in wanted if count}
    arrays, progress = on_devices(model, state), devices.is_first_process()
    drawn = make(model, list(keep))(*arrays, keep, progress=progress)
    none = np.empty((0, *model.source.event_shape), np.float32)
    return Samples(*(drawn.get(stage, none) for stage in Samples._fields))


def paths(model: Experiment, state: TrainState, num_samples: int) -> np.ndarray:
    """Returns the first samples on their way, `x_0 ... x_{K+κ}`, [K + κ + 1, num_samples, ...]."""
    draw = jax.jit(samplers.make_path_sampler(model.problem))
    batch = batch_at(model, np.arange(available(model, num_samples), dtype=np.int32))
    return np.asarray(draw(model.root_key, state.ema_variables, model.constants, batch))


def available(model: Experiment, num_samples: int) -> int:
    """Returns a number of samples, or the number of images to start from if that is smaller."""
    starts = model.source.starts
    return num_samples if starts is None else min(num_samples, starts.num)


def num_snapshot(model: Experiment) -> int:
    """Returns the number of samples of a snapshot, which a picture of the report shows."""
    most = 2_000 if model.source.kind == "points" else 64
    return available(model, min(most, model.settings.evaluate.num_samples))


def batch_at(model: Experiment, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the batch that the sampler reads: positions, images to start from and classes."""
    batch = {"position": positions}
    if model.source.starts is not None:
        batch["source"] = model.source.starts(positions)
    return batch | labels_at(model, positions)


def labels_at(model: Experiment, positions: np.ndarray) -> dict[str, Any]:
    """Returns the classes of the samples at these positions as a batch, empty without classes."""
    return {} if model.labels is None else {"label": model.labels(positions)}


def positions(model: Experiment, num_samples: int) -> np.ndarray:
    """Returns the positions of the first samples in batches for all devices, [batches, B].

    All batches have one size, so that one program is compiled for them. The last one repeats the
    last sample, because there may be no image to start further ones from.
    """
    wanted = min(model.settings.evaluate.batch_size, num_samples)
    size = -(-wanted // jax.device_count()) * jax.device_count()
    numbers = np.arange(-(-num_samples // size) * size, dtype=np.int32)
    return np.minimum(numbers, num_samples - 1).reshape(-1, size)


def make_log_ratio(model: Experiment, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the estimate `x [B, ...] -> log r(x) [B]` with the parameters that sampling uses."""
    variables = state.ema_variables
    apply = jax.jit(model.problem.estimator.apply)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        out, is_log = np.asarray(apply(variables, x)), model.problem.method.output == "log_ratio"
        # An unconstrained ratio may be negative, and then has no logarithm.
        return out if is_log else np.log(np.maximum(out, 1e-6))

    return log_ratio

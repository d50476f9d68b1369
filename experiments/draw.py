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
        num = max(keep.values())
        size = batch_size(model, num)
        parts: dict[str, list[np.ndarray]] = {}
        with tqdm(total=num, unit="sample", disable=not progress, desc="sampling") as bar:
            for offset in range(0, num, size):
                # The last batch is as large as the others, so that only one program is compiled. It
                # repeats the last sample, because there may be no image to start further ones from.
                numbers = np.minimum(np.arange(offset, offset + size, dtype=np.int32), num - 1)
                batch = batch_at(model, devices.local_part(numbers))
                found = mapped(model.root_key, variables, constants, parallel.shard(batch))
                for stage in keep:
                    if offset < keep[stage]:  # Other samples never leave a device.
                        values = np.asarray(parallel.gather(found[stage]))
                        parts.setdefault(stage, []).append(values[: keep[stage] - offset])
                bar.update(min(size, num - offset))
        return {stage: np.concatenate(values) for stage, values in parts.items()}

    return draw


def on_devices(model: Experiment, state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, on the devices."""
    return parallel.replicate(model.sampling_variables(state)), parallel.replicate(model.constants)


def sample_state(
    model: Experiment, state: TrainState, num: int, *, num_prior: int = 0, num_bridged: int = 0
) -> Samples:
    """Draws samples of a train state (one replica), and keeps so many of each stage."""
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
    return np.asarray(draw(model.root_key, model.sampling_variables(state), model.constants, batch))


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


def batch_size(model: Experiment, num_samples: int) -> int:
    """Returns the number of samples per batch, which is a multiple of the number of devices."""
    wanted = min(model.settings.evaluate.batch_size, num_samples)
    return -(-wanted // jax.device_count()) * jax.device_count()


def make_log_ratio(model: Experiment, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the estimate `x [B, ...] -> log r(x) [B]` with the parameters that sampling uses."""
    variables = model.sampling_variables(state)
    apply = jax.jit(model.problem.estimator.apply)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        out, is_log = np.asarray(apply(variables, x)), model.problem.method.output == "log_ratio"
        # An unconstrained ratio may be negative, and then has no logarithm.
        return out if is_log else np.log(np.maximum(out, 1e-6))

    return log_ratio

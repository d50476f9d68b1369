"""Draws samples of a density ratio: in batches over all devices, along the flow, between points."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.errors import UserError
from experiments.evaluation import Samples
from experiments.experiment import Experiment
from fdrl_jax import interpolation, refinement
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.state import TrainState

_SMALLEST_RATIO = 1e-6
# Of rejection: samples that set the bound, and attempts at a sample, whose positions are a stride
# apart. Positions are int32.
_NUM_PILOT, _STRIDE, _MAX_ATTEMPTS = 1_000, 2**20, 1_000
# Of a picture of interpolations: paths, points of each, and samples among which ends are chosen.
_NUM_PATHS, _NUM_POINTS, _NUM_ENDS = 4, 11, 300


class Sampler:
    """Draws samples of an experiment over all devices; compiled once per batch size.

    Devices return only the given stages: "prior", "bridged", "refined". With `sample.rejection`,
    the refined sample `i` is the first accepted one of those at the positions `i`, `i + 2^20`,
    `i + 2 * 2^20` and so on, so it depends on no other sample. Other stages are of the first one.
    """

    def __init__(self, model: Experiment, stages: Sequence[str] = ("refined",)) -> None:
        both = samplers.make_sampler(model.problem)
        start = samplers.make_start_sampler(model.problem)
        self._rejects = model.settings.sample.rejection and "refined" in stages
        if self._rejects:
            check_rejection(model)

        def draw(*arguments: Any) -> dict[str, jax.Array]:
            if tuple(stages) == ("prior",):
                return {"prior": start(*arguments)}  # Without the flow.
            drawn = both(*arguments)
            return {stage: getattr(drawn, stage) for stage in stages}

        def draw_candidates(*arguments: Any) -> dict[str, jax.Array]:
            found = samplers.make_candidate_sampler(model.problem)(*arguments)
            of_stages = {stage: getattr(found.stages, stage) for stage in stages}
            return of_stages | {"output": found.output, "accepted": found.accepted}

        self._model = model
        self._mapped = parallel.map_sampler(draw_candidates if self._rejects else draw)
        self._bound: tuple[Any, float] | None = None  # The variables, and the bound for these.
        self._accepted, self._tried = 0, 0

    @property
    def share_accepted(self) -> float | None:
        """The share of first attempts that rejection accepted, or `None` without any."""
        return self._accepted / self._tried if self._tried else None

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

        Raises:
          UserError: if rejection accepts none of many attempts at a sample.
        """
        num = max(keep.values())
        size, arrays = batch_size(self._model, full or num), (variables, constants)
        bound = self._bound_for(arrays, size) if self._rejects else 0.0
        kept: dict[str, np.ndarray] = {}
        with tqdm(total=num, unit="sample", disable=not progress, desc="sampling") as bar:
            for offset in range(0, num, size):
                # The last batch is as large as the others, so that only one program is compiled. It
                # repeats the last sample, because there may be no image to start further ones from.
                numbers = first + np.minimum(
                    np.arange(offset, offset + size, dtype=np.int32), num - 1
                )
                wanted = [stage for stage in keep if offset < keep[stage]]
                drawn = self._draw(arrays, numbers, bound, wanted)
                if self._rejects and "refined" in wanted:
                    num_wanted = min(size, keep["refined"] - offset)
                    self._replace_rejected(arrays, numbers[:num_wanted], bound, drawn)
                for stage in wanted:
                    values = drawn[stage]
                    if stage not in kept:
                        kept[stage] = np.empty((keep[stage], *values.shape[1:]), values.dtype)
                    rows = kept[stage][offset : offset + size]
                    rows[:] = values[: len(rows)]
                bar.update(min(size, num - offset))
        return kept

    def _draw(
        self, arrays: tuple[Any, Any], numbers: np.ndarray, bound: float, wanted: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Draws a whole batch of samples, at these positions."""
        positions = parallel.local_part(numbers)
        batch = batch_at(self._model, positions)
        if self._rejects:
            batch |= labels_at(self._model, positions % _STRIDE)  # Of all attempts at a sample.
            batch["bound"] = np.full(len(positions), bound, np.float32)
            wanted = [*wanted, "accepted"]
        drawn = self._mapped(self._model.root_key, *arrays, parallel.shard(batch))
        return {name: np.asarray(parallel.gather(drawn[name])) for name in wanted}

    def _bound_for(self, arrays: tuple[Any, Any], size: int) -> float:
        """Returns the bound of acceptance, from the ratios of the first samples."""
        if self._bound is None or self._bound[0] is not arrays[0]:
            starts = np.arange(0, _NUM_PILOT, size, dtype=np.int32)
            outputs = [
                self._draw(arrays, start + np.arange(size, dtype=np.int32), 0.0, ["output"])
                for start in starts
            ]
            ratios = np.concatenate([found["output"] for found in outputs])[:_NUM_PILOT]
            self._bound = arrays[0], float(refinement.acceptance_bound(ratios))
        return self._bound[1]

    def _replace_rejected(
        self,
        arrays: tuple[Any, Any],
        numbers: np.ndarray,
        bound: float,
        drawn: dict[str, np.ndarray],
    ) -> None:
        """Replaces rejected samples by the first of the next ones that is accepted."""
        size, attempt = len(drawn["accepted"]), 1
        drawn["refined"] = drawn["refined"].copy()  # What comes from a device is read-only.
        rejected = np.flatnonzero(~drawn["accepted"][: len(numbers)])
        self._accepted += len(numbers) - len(rejected)
        self._tried += len(numbers)
        while len(rejected):
            # A batch has several attempts at each sample, so that no part of it is idle.
            each = min(size // len(rejected), _MAX_ATTEMPTS - attempt)
            if not each:
                raise UserError(
                    f"sample.rejection: {_MAX_ATTEMPTS:,} attempts at a sample were rejected; "
                    "train for longer, or do without rejection"
                )
            attempts = attempt + np.arange(each, dtype=np.int32)
            positions = numbers[rejected] + attempts[:, None] * np.int32(_STRIDE)
            found = self._draw(arrays, np.resize(positions, size), bound, ["refined"])
            accepted, refined = (
                found[name][: positions.size].reshape(*positions.shape, *found[name].shape[1:])
                for name in ("accepted", "refined")
            )
            hit, place = accepted.any(axis=0), accepted.argmax(axis=0)
            drawn["refined"][rejected[hit]] = refined[place[hit], np.flatnonzero(hit)]
            rejected, attempt = rejected[~hit], attempt + each


def check_rejection(model: Experiment, num_samples: int = 0) -> None:
    """Raises an error if so many samples of this kind cannot be rejected and drawn again."""
    if model.source.starts is not None:
        reason = "is not for flows that start from images, because none should be left out"
    elif model.problem.condition is not None:
        reason = "is not for a classifier, because the ratio is not that of its samples"
    elif model.problem.output == "ratio":
        reason = "needs positive ratios, as of loss.name=lr or ukl"
    elif num_samples > _STRIDE:
        reason = f"is for at most {_STRIDE:,} samples, got --num_samples={num_samples:,}"
    else:
        return
    raise UserError(f"sample.rejection {reason}; set it to False")


def on_devices(model: Experiment, state: TrainState) -> tuple[Any, Any]:
    """Returns the variables and constants of a mapped sampler, on the devices."""
    variables = model.sampling_variables(state)
    return parallel.replicate(variables), parallel.replicate(model.constants)


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
    """Returns the first samples on their way, `x_0 ... x_{K+κ}`, [K + κ + 1, num_samples, ...].

    These are fewer if there are fewer images to start from.
    """
    draw = jax.jit(samplers.make_path_sampler(model.problem))
    batch = batch_at(model, np.arange(available(model, num_samples), dtype=np.int32))
    return np.asarray(draw(model.root_key, model.sampling_variables(state), model.constants, batch))


def interpolations(
    model: Experiment, state: TrainState
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns points between samples of the prior, and their samples, by kind of interpolation.

    Both are [paths, points, H, W, C]. All points of a path use the same noise, so they differ only
    in their start. Both ends are of the same class, if any, and of the same Gaussian of a mixture.
    """
    problem, key = model.problem, model.root_key
    num_steps = problem.flow.num_steps + problem.flow.num_refine_steps
    start = jax.jit(samplers.make_start_sampler(problem))
    advance = jax.jit(samplers.make_segment(problem, num_steps=num_steps))
    variables, denoise = model.sampling_variables(state), make_denoise(model, state)
    num = available(model, _NUM_ENDS)
    ends = batch_at(model, np.arange(num, dtype=np.int32))
    x0 = np.asarray(start(key, variables, model.constants, ends))
    # The centre of a Gaussian is its mean, that of other priors is zero.
    prior = model.constants.prior
    means = np.reshape(prior["mean"] if "mean" in prior else np.zeros(x0[0].size), (-1, x0[0].size))
    distances = np.square(means).sum(axis=1) - 2.0 * x0.reshape(num, -1) @ means.T
    nearest = distances.argmin(axis=1)
    pairs = _pairs(zip(nearest, ends.get("label", np.zeros(num)), strict=True))
    if not pairs:
        raise UserError(f"no two of {num} samples start in the same class and Gaussian")
    first, second = np.array(pairs[:_NUM_PATHS]).T
    centre = means[nearest[first]].reshape(-1, *x0.shape[1:])
    weights = jnp.linspace(0.0, 1.0, _NUM_POINTS)

    def sheet(between: Callable[..., jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        points = jax.vmap(lambda a, b: between(a, b, weights))(
            x0[first] - centre, x0[second] - centre
        )
        flat = (points + centre[:, None]).reshape(-1, *x0.shape[1:])
        batch: dict[str, Any] = {k: np.repeat(v[first], _NUM_POINTS) for k, v in ends.items()}
        batch["x"] = flat
        moved = denoise(np.asarray(advance(key, variables, model.constants, batch, 0)))
        shape = (len(first), _NUM_POINTS, *x0.shape[1:])
        return np.asarray(flat).reshape(shape), moved.reshape(shape)

    return {
        "spherical": sheet(interpolation.spherical),
        "linear": sheet(interpolation.linear),
    }


def _pairs(kinds: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Returns the numbers of each two successive examples of a kind."""
    waiting: dict[Hashable, int] = {}
    pairs = []
    for number, kind in enumerate(kinds):
        if kind in waiting:
            pairs.append((waiting.pop(kind), number))
        else:
            waiting[kind] = number
    return pairs


def available(model: Experiment, num_samples: int) -> int:
    """Returns a number of samples, or the number of images to start from if that is smaller."""
    starts = model.source.starts
    return num_samples if starts is None else min(num_samples, starts.num)


def batch_at(model: Experiment, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the batch that the sampler reads for the samples at these positions.

    It may have the images to start from, held-out images first, and the classes.
    """
    batch = {"position": positions}
    if model.source.starts is not None:
        batch["source"] = model.source.starts(positions)
    return batch | labels_at(model, positions)


def labels_at(model: Experiment, positions: np.ndarray) -> dict[str, Any]:
    """Returns the classes of the samples at these positions as a batch, empty without classes."""
    return {} if model.labels is None else {"label": model.labels(positions)}


def batch_size(model: Experiment, num_samples: int) -> int:
    """Returns the number of samples per batch, which is a multiple of the number of devices."""
    num_replicas = parallel.num_replicas()
    wanted = min(model.settings.evaluate.batch_size, num_samples)
    return -(-wanted // num_replicas) * num_replicas


def make_denoise(model: Experiment, state: TrainState) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the denoiser of samples after the flow, [N, ...]; the identity if there is none."""
    denoise = model.problem.denoise
    if denoise is None:
        return lambda x: x
    return in_batches(model, jax.jit(denoise), model.sampling_variables(state))


def in_batches(
    model: Experiment, apply: Callable[..., jax.Array], variables: Any
) -> Callable[..., np.ndarray]:
    """Returns `apply` with these variables as a function of any number of examples, [N, ...].

    Each of its arguments has one entry per example.
    """

    def of_all(*arrays: np.ndarray) -> np.ndarray:
        num = len(arrays[0])
        size = batch_size(model, num)
        parts = [[a[first : first + size] for a in arrays] for first in range(0, num, size)]
        return np.concatenate([apply(variables, *part) for part in parts])

    return of_all


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

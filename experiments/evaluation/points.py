"""Evaluation of samples in the plane against new data."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from experiments.data.source import Source
from experiments.evaluation import Evaluation, Samples
from experiments.evaluation.draws import NUM_DRAWS
from experiments.evaluation.log_ratio import kl_to_density, log_ratio_kl
from experiments.evaluation.metrics import Metric, by_name, measured
from experiments.evaluation.modes import mode_coverage
from fdrl_jax.metrics import mean_distance

MAX_POINTS = 10_000  # The time for the distances of all pairs grows with the square.
MODE_RADIUS_STDS = 4.0

# `x [N, 2] -> log p [N]`, or an estimate of log r [N].
LogDensity = Callable[[np.ndarray], np.ndarray]
Distance = Callable[[np.ndarray, np.ndarray], float]  # Of two sets of points.


def evaluate_points(source: Source, samples: Samples, log_ratio: LogDensity) -> Evaluation:
    """Computes distances to new data and, for a mixture, how well samples cover the modes.

    Every metric is also computed for real data: new data sets of the same size. The spread of the
    refined samples is over these data sets as references. If the density is known, the estimate
    `log_ratio`, `x [B, 2] -> log r [B]`, is compared with the true ratio. A metric that these
    samples do not allow, such as a density of equal points, is skipped, and the record says why.
    """
    ours, prior = samples.refined[:MAX_POINTS], samples.prior[:MAX_POINTS]
    data = [source.held_out(len(ours), seed) for seed in range(1, NUM_DRAWS + 2)]
    skipped: list[str] = []
    metrics = energy(ours, prior, data)
    if (density := source.density) is not None:
        log_density = density.log_density
        with _skipping("kl_to_data", skipped):
            kls = [kl_to_density(points, log_density(points)) for points in (ours, prior, *data)]
            metrics.append(measured("kl_to_data", kls[:1], kls[1:2], kls[2:]))
        with _skipping("log_ratio_kl", skipped):
            bridged = samples.bridged[:MAX_POINTS]
            metrics += _ratio(log_density, data[0], bridged, log_ratio)
    if density is not None and density.modes is not None:
        radius, every = MODE_RADIUS_STDS * density.mode_std, (ours, prior, *data)
        found = [mode_coverage(points, density.modes, radius) for points in every]
        of_modes = {
            "modes_hit": [float(side.num_hit) for side in found],
            "high_quality_share": [side.high_quality for side in found],
            "smallest_mode_share": [
                float(side.counts.min() / len(points))
                for side, points in zip(found, every, strict=True)
            ],
        }
        metrics += [measured(name, v[:1], v[1:2], v[2:]) for name, v in of_modes.items()]
    record = {"num_draws": NUM_DRAWS, "num_samples": len(ours), "skipped": skipped}
    return Evaluation(by_name(metrics), record, {})


def energy(samples: np.ndarray, prior: np.ndarray, data: list[np.ndarray]) -> list[Metric]:
    """Computes the energy distance, and its ratio to the average distance of true data.

    The ratio is `fdrl_jax.metrics.energy_ratio` in its unbiased form, `1 + D / (E|Y - Y'| (1/N +
    1/M))`, which is 1 on average for true data. The sets are those of `_against`.
    """
    # Each set is in several pairs, but has one mean distance within.
    within = {id(points): mean_distance(points) for points in (samples, prior, *data)}
    mean_within = float(np.mean([within[id(points)] for points in data]))
    scale = mean_within * (1 / len(samples) + 1 / len(data[0]))

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return 2.0 * mean_distance(x, y) - within[id(x)] - within[id(y)]

    sides = _against(distance, samples, prior, data)
    ratios = [[1.0 + found / scale for found in side] for side in sides]
    return [measured("energy_ratio", *ratios), measured("energy_distance", *sides)]


def _against(
    distance: Distance,
    samples: np.ndarray,
    prior: np.ndarray,
    data: list[np.ndarray],
) -> list[list[float]]:
    """Returns distances over draws of the samples, the prior and real data to new data.

    All sets are [N, 2]. There is one new data set more than draws: each except the last is the
    reference of a draw, and the next data set is the real data of that draw. The prior is far away,
    so one reference suffices.
    """
    sides = ([samples] * (len(data) - 1), [prior], data[1:])
    return [[distance(x, y) for x, y in zip(side, data, strict=False)] for side in sides]


@contextlib.contextmanager
def _skipping(name: str, skipped: list[str]) -> Iterator[None]:
    """Lists a metric that these points do not allow, with the reason."""
    try:
        yield
    except ValueError as error:
        skipped.append(f"{name}: {error}")


def _ratio(
    log_density: LogDensity, data: np.ndarray, bridged: np.ndarray, log_ratio: LogDensity
) -> list[Metric]:
    """Computes the error of the estimated density ratio of bridged samples over data, in nats.

    Only the mean of the true log-ratio is needed, `E_q̃[log r] = KL(q̃ ‖ p)`. It follows from the
    density of the data and an estimate of the entropy.
    """
    true_kl = kl_to_density(bridged, log_density(bridged))
    on_flowed, on_data = log_ratio(bridged), log_ratio(data[: len(bridged)])
    found = {
        "kl_of_bridged_to_data": true_kl,
        "kl_of_bridged_to_data_by_estimator": float(np.mean(on_flowed)),
        "log_ratio_kl": log_ratio_kl(true_kl, on_flowed, on_data),
    }
    return [measured(name, [value]) for name, value in found.items()]

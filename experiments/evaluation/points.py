"""Evaluation of samples in the plane against new data."""

from collections.abc import Callable

import numpy as np

from experiments.evaluation import Evaluation, Samples
from experiments.evaluation.draws import NUM_DRAWS
from experiments.evaluation.metrics import Estimate, Metric, by_name, estimate, measured
from experiments.evaluation.references import PointsReference
from fdrl_jax.metrics import (
    kl_to_density,
    log_ratio_kl,
    mean_distance,
    mode_coverage,
    sinkhorn_divergence,
    sliced_wasserstein,
)

MAX_POINTS = 10_000  # The time for the distances of all pairs grows with the square.
MODE_RADIUS_STDS = 4.0
_MAX_SINKHORN_POINTS = 1_000  # Hundreds of passes over all pairs take about a second.
_MAX_SLICED_POINTS = 5_000
# Relative to the mean squared distance within the data. Smaller values need many more iterations.
_SINKHORN_EPSILON = 0.05

LogDensity = Callable[[np.ndarray], np.ndarray]
LogRatio = Callable[[np.ndarray], np.ndarray]


def evaluate_points(
    reference: PointsReference,
    samples: Samples,
    log_ratio: LogRatio | None = None,
) -> Evaluation:
    """Computes distances to new data and, for a mixture, how well samples cover the modes.

    Every metric is also computed for real data: new data sets of the same size. The spread of the
    refined samples is over these data sets as references; the samples stay the same. If the density
    is known, the estimate `log_ratio`, `x [B, 2] -> log r [B]`, is compared with the true ratio.
    """
    ours = {
        "samples": samples.refined[:MAX_POINTS],
        "prior": samples.prior[:MAX_POINTS],
    }
    num = len(ours["samples"])
    data = [reference.draw(num, seed) for seed in range(1, NUM_DRAWS + 2)]
    metrics = [*energy(ours["samples"], ours["prior"], data), *_transport(ours, data)]
    if reference.log_density is not None:
        density = reference.log_density

        def kl(points: np.ndarray) -> float:
            return float(kl_to_density(points, density(points)))

        metrics.append(_once("kl_to_data", kl, ours, data))
        if log_ratio is not None:
            metrics += _ratio(density, data[0], samples, log_ratio)
    if reference.modes is not None and reference.mode_std is not None:
        metrics += _modes(reference.modes, MODE_RADIUS_STDS * reference.mode_std, ours, data)
    return Evaluation(by_name(metrics), {"num_draws": NUM_DRAWS, "num_samples": num}, {})


def energy(samples: np.ndarray, prior: np.ndarray, data: list[np.ndarray]) -> list[Metric]:
    """Computes the energy distance, and its ratio to the average distance of true data.

    The ratio is `fdrl_jax.metrics.energy_ratio` in its unbiased form. The biased estimate of N
    points against M is the unbiased energy distance plus `E|Y - Y'| (1/N + 1/M)`, its average for
    true data. The average ratio of true data is therefore 1.

    All sets are [N, 2]. There is one new data set more than draws: each except the last is the
    reference of a draw, and the next data set is the real data of that draw.
    """
    within = [mean_distance(points) for points in data]
    scale = float(np.mean(within)) * (1 / len(samples) + 1 / len(data[0]))

    def distances(sets: list[np.ndarray], within_sets: list[float]) -> list[float]:
        return [
            2.0 * mean_distance(points, other) - own - own_other
            for points, own, other, own_other in zip(
                sets, within_sets, data[: len(sets)], within[: len(sets)], strict=True
            )
        ]

    def repeated(points: np.ndarray, copies: int) -> list[float]:
        return distances([points] * copies, [mean_distance(points)] * copies)

    # The prior is far away, so one reference suffices.
    num_draws = len(data) - 1
    sides = [repeated(samples, num_draws), repeated(prior, 1), distances(data[1:], within[1:])]
    ratios = [[1.0 + distance / scale for distance in side] for side in sides]
    return [
        measured("energy_ratio", *map(estimate, ratios)),
        measured("energy_distance", *map(estimate, sides)),
    ]


def _once(
    definition: str,
    score: Callable[[np.ndarray], float],
    ours: dict[str, np.ndarray],
    data: list[np.ndarray],
) -> Metric:
    """Returns a metric without a reference, of the samples, the prior and new data."""
    real = estimate(score(points) for points in data)
    samples, prior = (Estimate(score(ours[side])) for side in ("samples", "prior"))
    return measured(definition, samples, prior, real)


def _transport(ours: dict[str, np.ndarray], data: list[np.ndarray]) -> list[Metric]:
    """Optimal-transport metrics, of fewer points; their number is in the names."""
    epsilon = _SINKHORN_EPSILON * 2.0 * float(data[0].var(axis=0).sum())

    def sinkhorn(points: np.ndarray, other: np.ndarray) -> float:
        return sinkhorn_divergence(points, other, epsilon=epsilon)

    return [
        _over_references("sliced_wasserstein", sliced_wasserstein, _MAX_SLICED_POINTS, ours, data),
        _over_references("sinkhorn_divergence", sinkhorn, _MAX_SINKHORN_POINTS, ours, data),
    ]


def _over_references(
    definition: str,
    distance: Callable[[np.ndarray, np.ndarray], float],
    most: int,
    ours: dict[str, np.ndarray],
    data: list[np.ndarray],
) -> Metric:
    num = min(most, len(data[0]))

    def over_draws(sets: list[np.ndarray]) -> Estimate:
        pairs = zip(sets, data[: len(sets)], strict=True)
        return estimate(distance(points[:num], other[:num]) for points, other in pairs)

    sides = ([ours["samples"]] * (len(data) - 1), [ours["prior"]], data[1:])
    return measured(definition, *map(over_draws, sides), num=num)


def _modes(
    modes: np.ndarray, radius: float, ours: dict[str, np.ndarray], data: list[np.ndarray]
) -> list[Metric]:
    def hit(points: np.ndarray) -> float:
        return float(mode_coverage(points, modes, radius).num_hit)

    def close(points: np.ndarray) -> float:
        return mode_coverage(points, modes, radius).high_quality

    def smallest(points: np.ndarray) -> float:
        return float(mode_coverage(points, modes, radius).counts.min() / len(points))

    named = {"modes_hit": hit, "high_quality_share": close, "smallest_mode_share": smallest}
    return [_once(name, score, ours, data) for name, score in named.items()]


def _ratio(
    log_density: LogDensity, data: np.ndarray, samples: Samples, log_ratio: LogRatio
) -> list[Metric]:
    """Computes the error of the estimated density ratio of bridged samples over data, in nats.

    The density of the bridged samples is unknown. However, only the mean of the true log-ratio is
    needed, `E_q̃[log r] = KL(q̃ ‖ p)`. It follows from the density of the data and an estimate of the
    entropy.
    """
    bridged = samples.bridged[:MAX_POINTS]
    true_kl = float(kl_to_density(bridged, log_density(bridged)))
    on_flowed, on_data = log_ratio(bridged), log_ratio(data[: len(bridged)])
    found = {
        "kl_of_bridged_to_data": true_kl,
        "kl_of_bridged_to_data_by_estimator": float(np.mean(on_flowed)),
        "log_ratio_kl": float(log_ratio_kl(true_kl, on_flowed, on_data)),
    }
    return [measured(name, Estimate(value)) for name, value in found.items()]

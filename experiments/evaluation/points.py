"""Metrics of samples in the plane, against fresh data."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data import Source
from experiments.evaluation.naming import with_count
from experiments.sampling.draw import Samples
from fdrl_jax.metrics import (
    energy_distance,
    energy_ratio,
    kl_to_density,
    log_ratio_kl,
    mode_coverage,
    sinkhorn_divergence,
    sliced_wasserstein,
)

MAX_POINTS = 10_000  # Distances of all pairs: four times the points take sixteen times the time.
MODE_RADIUS_STDS = 4.0
_MAX_SINKHORN_POINTS = 1_000  # Hundreds of passes over all pairs: about a second.
_MAX_SLICED_POINTS = 5_000
# Of the mean squared distance within the data: less is sharper but takes many more iterations.
_SINKHORN_EPSILON = 0.05


def metrics(source: Source, samples: np.ndarray) -> dict[str, Any]:
    """Computes distances to fresh data and, for a mixture, how the samples fall on the modes.

    The energy distance is estimated without bias, so that between two sets of data it scatters
    about 0 and cannot serve as a unit. `energy_ratio` divides the biased estimate by its
    expectation for true data, which score 1 on average; 90% of true data sets score between
    `energy_ratio_of_data_p05` and `energy_ratio_of_data_p95`. Distances of optimal transport are
    positive for any finite sets too, so each has that between fresh data next to it. Where the
    density of the data is known, so is the KL divergence of the samples from it, up to the entropy
    of the samples, which is estimated from nearest neighbours.
    """
    samples = samples[:MAX_POINTS]
    data, fresh = (source.held_out(len(samples), seed) for seed in (1, 2))
    ratio_to_data = energy_ratio(samples, data)
    result: dict[str, Any] = {
        "energy_distance": energy_distance(samples, data),
        "energy_ratio": ratio_to_data.value,
        "energy_ratio_of_data_p05": ratio_to_data.low,
        "energy_ratio_of_data_p95": ratio_to_data.high,
        "num_samples": len(samples),
        **_transport("", samples, data),
        **_transport("_of_fresh_data", fresh, data),
    }
    density = source.density
    if density is not None:
        result["kl_to_data"] = kl_to_density(samples, density.log_density(samples))
    if density is not None and density.modes is not None:
        radius = MODE_RADIUS_STDS * density.mode_std
        coverage = mode_coverage(samples, density.modes, radius)
        result |= {
            "modes_hit": coverage.num_hit,
            "modes": coverage.num_modes,
            "high_quality_share": coverage.high_quality,
            "high_quality_share_of_data": mode_coverage(data, density.modes, radius).high_quality,
            "smallest_mode_share": float(coverage.counts.min() / len(samples)),
        }
    return result


def ratio(
    source: Source, samples: Samples, log_ratio: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """Computes how far an estimated density ratio is from the true one, in nats.

    The estimate is of the bridged samples over the data. Their density is not known, but of the
    true log-ratio only its mean is needed, `E_q̃[log r] = KL(q̃ ‖ p)`, which follows from the density
    of the data and an estimate of the entropy.

    Args:
      source: the data; without a known density there is nothing to compute.
      samples: the bridged ones are what the estimator was trained on.
      log_ratio: the estimate, `x [B, 2] -> log r [B]`.
    """
    if source.density is None:
        return {}
    bridged = samples.bridged[:MAX_POINTS]
    true_kl = kl_to_density(bridged, source.density.log_density(bridged))
    on_flowed, on_data = log_ratio(bridged), log_ratio(source.held_out(len(bridged), 1))
    return {
        "kl_of_bridged_to_data": true_kl,
        "kl_of_bridged_to_data_by_estimator": float(np.mean(on_flowed)),
        "log_ratio_kl": log_ratio_kl(true_kl, on_flowed, on_data),
    }


def _transport(suffix: str, samples: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """Optimal transport, on fewer points: how many stands in the names."""
    few, some = min(_MAX_SINKHORN_POINTS, len(samples)), min(_MAX_SLICED_POINTS, len(samples))
    epsilon = _SINKHORN_EPSILON * 2.0 * float(data.var(axis=0).sum())
    sinkhorn = sinkhorn_divergence(samples[:few], data[:few], epsilon=epsilon)
    sliced = sliced_wasserstein(samples[:some], data[:some])
    return {
        with_count(f"sliced_wasserstein{suffix}", some): sliced,
        with_count(f"sinkhorn_divergence{suffix}", few): sinkhorn,
    }

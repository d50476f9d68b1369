"""Metrics of samples in the plane, against fresh data."""

from typing import Any

import numpy as np

from experiments.data import Source
from fdrl_jax.metrics import energy_distance, mode_coverage

MAX_POINTS = 10_000  # Distances of all pairs: four times the points take sixteen times the time.
MODE_RADIUS_STDS = 4.0


def metrics(source: Source, samples: np.ndarray) -> dict[str, Any]:
    """Computes energy distances and, for a mixture, how the samples fall on the modes.

    The energy distance is estimated without bias, so that between two fresh data sets it scatters
    about 0 and cannot serve as a unit. `energy_ratio` therefore compares the biased estimates,
    which are positive: 1 says that samples are as near to data as a fresh set of data is.
    """
    samples = samples[:MAX_POINTS]
    data, fresh = (source.held_out(len(samples), seed) for seed in (1, 2))
    result: dict[str, Any] = {
        "energy_distance": energy_distance(samples, data),
        "energy_distance_of_fresh_data": energy_distance(fresh, data),
        "energy_ratio": energy_distance(samples, data, unbiased=False)
        / energy_distance(fresh, data, unbiased=False),
        "num_samples": len(samples),
    }
    if source.modes is not None and source.mode_std is not None:
        radius = MODE_RADIUS_STDS * source.mode_std
        coverage = mode_coverage(samples, source.modes, radius)
        result |= {
            "modes_hit": coverage.num_hit,
            "modes": coverage.num_modes,
            "high_quality_share": coverage.high_quality,
            "high_quality_share_of_data": mode_coverage(data, source.modes, radius).high_quality,
            "smallest_mode_share": float(coverage.counts.min() / len(samples)),
        }
    return result

"""The energy distance between two samples."""

import numpy as np
from scipy.spatial.distance import cdist

from fdrl_jax.metrics.rows import flat

_ROWS = 1_000  # A block of 1,000 x 10,000 distances takes 80 MB.


def energy_distance(x: np.ndarray, y: np.ndarray, *, unbiased: bool = True) -> float:
    """Estimates the squared energy distance `2 E|X - Y| - E|X - X'| - E|Y - Y'|`.

    Args:
      x: a sample, [N, ...].
      y: another one, [M, ...].
      unbiased: leave out the distances of points to themselves (the U-statistic). Its expectation
        is the distance between the distributions, so 0 for equal ones, and single estimates may be
        negative. The biased V-statistic is never negative and has an expectation of about
        `E|X - X'| (1/N + 1/M)` for equal distributions.

    Returns:
      The estimate, in the unit of the data.

    Raises:
      ValueError: for fewer than two points, or points of unequal dimensions.

    Reference: Székely and Rizzo, "Energy statistics", 2013.
    """
    x, y = flat(x), flat(y)
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"two samples of points of one dimension needed, got {x.shape}, {y.shape}")
    n, m = len(x), len(y)
    pairs_x, pairs_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return float(
        2.0 * _sum_distances(x, y) / (n * m)
        - _sum_distances(x, x) / pairs_x
        - _sum_distances(y, y) / pairs_y
    )


def _sum_distances(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(cdist(x[i : i + _ROWS], y).sum()) for i in range(0, len(x), _ROWS))

"""Distances between samples and data, on the host in float64: they judge, they do not train."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

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
      ValueError: for less than two points, or points of unequal dimensions.

    Reference: Székely and Rizzo, "Energy statistics", 2013.
    """
    x, y = _flat(x), _flat(y)
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"two samples of points of one dimension needed, got {x.shape}, {y.shape}")
    n, m = (len(x), len(y))
    pairs_x, pairs_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return float(
        2.0 * _sum_distances(x, y) / (n * m)
        - _sum_distances(x, x) / pairs_x
        - _sum_distances(y, y) / pairs_y
    )


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians fitted to two sets of features.

    `|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^(1/2))`.

    Args:
      x: features, [N, D].
      y: features, [M, D]. With few more examples than D the estimate is biased upwards, so compare
        at equal N alone.

    Raises:
      ValueError: for features of unequal dimensions.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017.
    """
    x, y = _flat(x), _flat(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of one dimension needed, got {x.shape} and {y.shape}")
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cov_x, cov_y = np.atleast_2d(cov_x), np.atleast_2d(cov_y)
    # (Σx Σy) has the eigenvalues of Σx^½ Σy Σx^½, which is symmetric: no complex square root.
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_y @ root)
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(
        gap @ gap
        + np.trace(cov_x)
        + np.trace(cov_y)
        - 2.0 * np.sum(np.sqrt(np.clip(cross, 0.0, None)))
    )


class ModeCoverage(NamedTuple):
    """How samples fall on the modes of a mixture.

    Attributes:
      num_hit: modes that are the nearest of at least one sample within the radius.
      num_modes: modes of the mixture.
      high_quality: share of samples within the radius of a mode, 0 to 1.
      counts: samples within the radius of each mode.
    """

    num_hit: int
    num_modes: int
    high_quality: float
    counts: np.ndarray


def mode_coverage(samples: np.ndarray, modes: np.ndarray, radius: float) -> ModeCoverage:
    """Counts the modes that samples hit, and the share of samples near a mode.

    Args:
      samples: points, [N, D].
      modes: centres, [M, D].
      radius: distance within which a sample belongs to its nearest mode: usually 4 standard
        deviations of a mode.
    """
    distances = cdist(_flat(samples), _flat(modes))
    near = distances.min(axis=1) <= radius
    counts = np.bincount(distances.argmin(axis=1)[near], minlength=len(modes))
    return ModeCoverage(int(np.sum(counts > 0)), len(modes), float(near.mean()), counts)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _sum_distances(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(cdist(x[i : i + _ROWS], y).sum()) for i in range(0, len(x), _ROWS))

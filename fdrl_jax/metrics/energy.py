"""The energy distance between two samples, and its ratio to the distance that true data have."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdrl_jax.metrics.rows import pair

_ROWS = 1_000  # A block of 1,000 x 10,000 distances needs 80 MB.
_FEW_FEATURES = 8  # Up to this number, differences are faster than a matrix product.
_COINCIDENT = 1e-13  # Squared distances below this share of the squared norms are rounding errors.
_MAX_SPLIT_POINTS = 1_000


class EnergyRatio(NamedTuple):
    """How far samples are from data, relative to independent true data.

    Attributes:
      value: the ratio. Its expectation is 1 if the samples are true data.
      low: the 5% quantile of the ratio of true data.
      high: the 95% quantile of the ratio of true data.
    """

    value: float
    low: float
    high: float


def energy_distance(x: np.ndarray, y: np.ndarray, *, unbiased: bool = True) -> float:
    """Estimates the squared energy distance `2 E|X - Y| - E|X - X'| - E|Y - Y'|`.

    It is computed in float64 on the default device, in blocks, so memory grows only with M and D.

    Args:
      x: a sample, [N, ...].
      y: another sample, [M, ...].
      unbiased: exclude the distances of points to themselves (the U-statistic). Its expectation is
        the distance between the distributions, 0 if they are equal, so an estimate may be negative.
        The biased V-statistic is never negative; for equal distributions its expectation is
        `E|X - X'| (1/N + 1/M)`.

    Returns:
      The estimate, in the unit of the data.

    Raises:
      ValueError: for fewer than two points, or points with different numbers of features.

    Reference: Székely and Rizzo, "Energy statistics", 2013.
    """
    x, y = pair(x, y, 2)
    n, m = len(x), len(y)
    pairs_x, pairs_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return (
        2.0 * _sum_distances(x, y) / (n * m)
        - _sum_distances(x, x) / pairs_x
        - _sum_distances(y, y) / pairs_y
    )


def mean_distance(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """Returns the mean distance `E|X - Y|` between two samples, or `E|X - X'|` within one.

    With it, comparisons of many samples with the same data can reuse the mean within the data.

    Args:
      x: a sample, [N, ...].
      y: another sample, [M, ...]; if omitted, the mean is over distinct points of `x`.

    Raises:
      ValueError: for fewer than two points, or points with different numbers of features.
    """
    if y is None:
        x, _ = pair(x, x, 2)
        return _sum_distances(x, x) / (len(x) * (len(x) - 1))
    x, y = pair(x, y, 2)
    return _sum_distances(x, y) / (len(x) * len(y))


def energy_ratio(
    samples: np.ndarray, data: np.ndarray, *, num_splits: int = 1_000, seed: int = 0
) -> EnergyRatio:
    """Compares the energy distance of samples to data with the distance that true data would have.

    The numerator is the biased estimate (the V-statistic) between samples and data. The denominator
    is its exact expectation if the samples were true data, `E|Y - Y'| (1/N + 1/M)`, where the mean
    distance is an unbiased estimate from the data. The expected ratio of true data is therefore 1,
    and no further sample of data is needed. The same deviation gives a larger ratio with more
    samples.

    If N and M are large, the distribution of the ratio of true data does not depend on them. Its
    quantiles are estimated from random splits of (at most 1,000 of) the data into two halves.

    Args:
      samples: the samples to evaluate, [N, ...].
      data: samples of the true distribution, independent of `samples`, [M, ...].
      num_splits: number of random splits for the quantiles.
      seed: seed of the splits.

    Returns:
      The ratio, and the 5% and 95% quantiles of the ratio of true data.

    Raises:
      ValueError: for fewer than two points, points with different numbers of features, or data
        that all coincide.
    """
    samples, data = pair(samples, data, 2)
    n, m = len(samples), len(data)
    within = _sum_distances(data, data)
    distance = (
        2.0 * _sum_distances(samples, data) / (n * m)
        - _sum_distances(samples, samples) / n**2
        - within / m**2
    )
    expected = within / (m * (m - 1)) * (1 / n + 1 / m)
    if expected == 0.0:
        raise ValueError("all points of the data coincide, so there is no distance to compare with")
    low, high = np.quantile(_ratios_of_splits(data, num_splits, seed), (0.05, 0.95))
    return EnergyRatio(distance / expected, float(low), float(high))


def _ratios_of_splits(data: np.ndarray, num_splits: int, seed: int) -> np.ndarray:
    """Returns the energy ratio between the halves of each random split."""
    rng = np.random.default_rng(seed)
    half = min(len(data), _MAX_SPLIT_POINTS) // 2
    points = rng.permutation(data)[: 2 * half]
    sides = np.repeat([1.0, -1.0], half)
    signs = rng.permuted(np.tile(sides, (num_splits, 1)), axis=1)
    with jax.enable_x64(True):
        return np.asarray(_split_ratios(jnp.asarray(points), jnp.asarray(signs)))


def _sum_distances(x: np.ndarray, y: np.ndarray) -> float:
    with jax.enable_x64(True):
        return float(_sum(jnp.asarray(x), jnp.asarray(y)))


@jax.jit
def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    of_rows = lax.map(lambda row: _distances(row[None], y).sum(), x, batch_size=_ROWS)
    return jnp.sum(of_rows)


@jax.jit
def _split_ratios(points: jax.Array, signs: jax.Array) -> jax.Array:
    """Returns the ratio for splits [S, 2 H] into two halves of H points, marked by 1 and -1."""
    half = len(points) // 2
    distances = _distances(points, points)
    # 2 mean(A, B) - mean(A, A) - mean(B, B) as a quadratic form in the signs.
    energies = -jnp.sum((signs @ distances) * signs, axis=1) / half**2
    mean_distance = jnp.sum(distances) / (2 * half * (2 * half - 1))
    return energies / (mean_distance * 2.0 / half)


@jax.jit
def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the distances [N, M] of points [N, D] and [M, D], without an array of N x M x D."""
    if x.shape[1] <= _FEW_FEATURES:
        gaps = (x[:, i, None] - y[:, i] for i in range(x.shape[1]))
        return jnp.sqrt(sum((gap**2 for gap in gaps), jnp.zeros((len(x), len(y)), x.dtype)))
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    squares = norms - 2.0 * jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.where(squares <= _COINCIDENT * norms, 0.0, squares))

"""Fidelity and diversity of samples: precision, recall, density and coverage."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.evaluation.rows import pair

_ROWS = 1_000  # A block of 1,000 x 50,000 distances takes 400 MB.


class ManifoldMetrics(NamedTuple):
    """Fidelity and diversity from nearest neighbours in a feature space.

    The ball of a point has its distance to its k-th neighbour, in its own set, as radius.

    Attributes:
      precision: share of samples that are in the ball of at least one data point.
      recall: share of data that are in the ball of at least one sample.
      density: mean number of data balls that contain a sample, divided by k. It is about 1 for
        equal distributions and may exceed 1. A single outlier in the data does not raise it.
      coverage: share of data whose ball contains at least one sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    samples: np.ndarray,
    data: np.ndarray,
    *,
    precision_neighbours: int = 3,
    density_neighbours: int = 5,
) -> ManifoldMetrics:
    """Computes precision, recall, density and coverage from features.

    Args:
      samples: features of generated examples, [N, D].
      data: features of real examples, [M, D].
      precision_neighbours: k of precision and recall.
      density_neighbours: k of density and coverage.

    Returns:
      The four metrics. All except density are between 0 and 1. They are NaN if any feature is not
      finite.

    Raises:
      ValueError: for different numbers of features, or if there are no more examples than
        neighbours.

    Reference: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative
    Models", NeurIPS 2019; Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
    Models", ICML 2020.
    """
    samples, data = pair(samples, data, max(precision_neighbours, density_neighbours) + 1)
    if not (np.isfinite(samples).all() and np.isfinite(data).all()):
        # A comparison with NaN is false and would count as "outside the ball".
        return ManifoldMetrics(*[float("nan")] * 4)
    # Equal distances of discrete features must count as equal whatever their rounding.
    rounding = 1e-12 * max(np.max(np.sum(x**2, axis=1)) for x in (samples, data))
    of_data = _radii(data, (precision_neighbours, density_neighbours)) + rounding
    of_samples = _radii(samples, (precision_neighbours,)) + rounding

    def to_data(rows: np.ndarray) -> np.ndarray:
        near = rows <= of_data[1]
        return np.stack([(rows <= of_data[0]).any(axis=1), near.sum(axis=1)], axis=1)

    def to_samples(rows: np.ndarray, own_radius: np.ndarray) -> np.ndarray:
        covered = rows.min(axis=1) <= own_radius
        return np.stack([(rows <= of_samples[0]).any(axis=1), covered], axis=1)

    inside, count = _over_rows(samples, data, lambda rows, _: to_data(rows)).mean(axis=0)
    found, covered = _over_rows(
        data, samples, lambda rows, part: to_samples(rows, of_data[1, part])
    ).mean(axis=0)
    return ManifoldMetrics(
        float(inside), float(found), float(count / density_neighbours), float(covered)
    )


def _radii(x: np.ndarray, neighbours: tuple[int, ...]) -> np.ndarray:
    """Returns squared distances to the k-th other point for each k, [len(neighbours), N]."""
    ks = list(neighbours)
    return _over_rows(x, x, lambda rows, _: np.partition(rows, ks, axis=1)[:, ks]).T


def _over_rows(
    x: np.ndarray, y: np.ndarray, reduce_rows: Callable[[np.ndarray, slice], np.ndarray]
) -> np.ndarray:
    """Reduces squared distances from `x` to `y` in blocks, as [N, M] may not fit in memory."""
    squares = np.sum(y**2, axis=1)
    blocks = []
    for first in range(0, len(x), _ROWS):
        part = slice(first, first + _ROWS)
        rows = np.sum(x[part] ** 2, axis=1)[:, None] + squares - 2.0 * x[part] @ y.T
        blocks.append(reduce_rows(np.maximum(rows, 0.0), part))
    return np.concatenate(blocks)

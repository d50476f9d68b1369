"""A mixture of Gaussians, fitted to examples on the host: clusters, and a Gaussian for each."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.cluster.vq import kmeans2

from fdrl_jax._covariance import low_rank, low_rank_factor

_NUM_DIRECTIONS = 50  # In which distances between examples are computed.
_NUM_ROUNDS = 30
_BATCH = 1_000


class Mixture(NamedTuple):
    """A mixture of M Gaussians of rank k, `Σ_m w_m N(μ_m, F_m F_mᵀ + C diag(s_m²) Cᵀ)`.

    Attributes:
      weights: `w`, [M], which sum to 1; or [C, M], with a row for the samples of each class.
      means: `μ`, [M, ...].
      factor: all `F` side by side, [D, M k], with D the size of an example.
      remainder_scale: `s`, [M, ...], as for `priors.gaussian`.
      share_held: share of the variance within components that the factors explain.
    """

    weights: np.ndarray
    means: np.ndarray
    factor: np.ndarray
    remainder_scale: np.ndarray
    share_held: float


def clusters(
    examples: np.ndarray, num_clusters: int, *, labels: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Assigns examples to clusters: k-means in the leading 50 principal directions of the data.

    Args:
      examples: [N, ...].
      num_clusters: at most N. Clusters that lose all examples are left out.
      labels: classes of the examples, [N], from 0 to C - 1. Each class then has clusters of its
        own, `num_clusters` or, if it has fewer examples, as many as these.
      seed: of the random directions and of the first centres (k-means++).

    Returns:
      The number of the cluster of each example, [N]; every number up to the largest occurs.

    Raises:
      ValueError: if the number of clusters is not from 1 to N, the labels are not N, or an example
        is not finite.

    Reference: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    examples, num = np.asarray(examples), len(examples)
    if labels is not None:
        labels = np.asarray(labels)
        _check_numbers("label", labels, num)
        found, first = np.zeros(num, np.int32), 0
        for own in (np.flatnonzero(labels == label) for label in np.unique(labels)):
            found[own] = first + clusters(examples[own], min(num_clusters, len(own)), seed=seed)
            first = int(found[own].max()) + 1
        return found
    if not 1 <= num_clusters <= num:
        raise ValueError(
            f"the number of clusters must be from 1 to that of the examples, {num}, "
            f"got {num_clusters}"
        )
    if num_clusters == 1 and np.isfinite(examples).all():  # Others are an error below.
        return np.zeros(num, np.int32)
    rows = examples.reshape(num, -1)
    part = low_rank(_batches(examples), min(_NUM_DIRECTIONS, rows.shape[1]), seed)
    projected = np.concatenate([(batch - part.mean) @ part.directions for batch in _batches(rows)])
    # The choice of centres fails if there are fewer different examples than clusters.
    num_centres = min(num_clusters, len(np.unique(projected, axis=0)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        _, found = kmeans2(
            projected, num_centres, _NUM_ROUNDS, minit="++", seed=np.random.default_rng(seed)
        )
    return np.unique(found, return_inverse=True)[1].astype(np.int32)


def fit_mixture(
    examples: np.ndarray,
    components: np.ndarray,
    rank: int,
    jitter: float = 1e-4,
    *,
    labels: np.ndarray | None = None,
) -> Mixture:
    """Fits a Gaussian to the examples of each component, as `low_rank_factor` does.

    Args:
      examples: [N, ...], without augmentation and in [-1, 1].
      components: the component of each example, [N], from 0 to M - 1: from `clusters`, or classes.
      rank: number of directions k of each component, at most D.
      jitter: as for `covariance_factor`.
      labels: classes of the examples, [N], from 0 to C - 1, for samples of a class.

    Returns:
      The mixture, whose weights are the shares of the examples, with labels of those of each class.

    Raises:
      ValueError: if a component or a class has no examples, an example is not finite, or the rank
        is not from 1 to D.
    """
    counts = _counts("component", components, len(examples))
    weights = counts / len(examples)
    if labels is not None:
        of_classes = _counts("label", labels, len(examples))
        weights = np.zeros((len(of_classes), len(counts)))
        np.add.at(weights, (labels, components), 1.0)
        weights /= of_classes[:, None]
    parts = [
        low_rank(_batches(examples[components == number]), rank) for number in range(len(counts))
    ]
    factors, scales = zip(*(low_rank_factor(part, jitter) for part in parts), strict=True)
    held, total = (
        sum(count * values.sum() for count, values in zip(counts, of_all, strict=True))
        for of_all in ([part.variances for part in parts], [part.spectrum for part in parts])
    )
    return Mixture(
        weights=weights,
        means=np.stack([part.mean.reshape(examples.shape[1:]) for part in parts]),
        factor=np.concatenate(factors, axis=1),
        remainder_scale=np.stack(scales),
        share_held=float(held / total) if total else 1.0,
    )


def _counts(name: str, numbers: np.ndarray, num_examples: int) -> np.ndarray:
    """Returns how many examples have each number, from 0 to the largest."""
    _check_numbers(name, numbers, num_examples)
    counts = np.bincount(numbers)
    if not counts.all():
        raise ValueError(f"{name} {int(np.argmin(counts))} of {len(counts)} has no examples")
    return counts


def _batches(examples: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(examples), _BATCH):
        yield examples[first : first + _BATCH]


def _check_numbers(name: str, numbers: np.ndarray, num_examples: int) -> None:
    if np.shape(numbers) != (num_examples,):
        raise ValueError(
            f"one {name} is needed per example, ({num_examples},), got {np.shape(numbers)}"
        )

"""Is there a difference at all? A test whose rate of false alarms is known for any sizes of sets.

Normal scores of the columns, their squares and their products are compared by two statistics of
Hotelling's kind, with a ridge: of the columns only, and of all features. Labels (or, for pairs,
partners) are permuted, so that the test is exact. Rows with weights or groups cannot be permuted;
their contributions get random signs.

References: Phipson and Smyth, "Permutation p-values should never be zero", 2010; Westfall and
Young, "Resampling-based multiple testing", 1993 (smallest p-value of several tests).
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2, rankdata

__all__ = ["independence", "smallest_kl", "two_sample"]
__dir__ = __all__.copy

_NUM_PERMUTATIONS = 499
_MAX_ROWS, _MAX_PAIRED, _MAX_COLUMNS = 5_000, 20, 300


def two_sample(
    rng: np.random.Generator,
    top: np.ndarray,
    bottom: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Returns the p-value of "both sets have one distribution".

    Args:
      rng: random numbers.
      top: normal scores of the numerator, [N, D].
      bottom: the same for the denominator, [M, D].
      weights: of the rows, if they differ.
      groups: of the rows, if there are any.
    """
    chosen = [_some(rng, x) for x in (top, bottom)]
    x = np.concatenate([part[rows] for part, rows in zip((top, bottom), chosen, strict=True)])
    n, m = map(len, chosen)
    is_top = np.arange(n + m) < n
    if weights is None and groups is None:
        labels = np.where(is_top, 1.0 / n, -1.0 / m)
        draws = np.stack([labels, *(rng.permutation(labels) for _ in range(_NUM_PERMUTATIONS))])
        return _smallest_p([_lengths(draws, f) for f in _features(x)])
    if weights is None:
        weights = np.ones(len(top)), np.ones(len(bottom))
    picked = [w[rows] for w, rows in zip(weights, chosen, strict=True)]
    labels = np.concatenate([picked[0] / picked[0].sum(), -picked[1] / picked[1].sum()])
    group = np.arange(n + m)
    if groups is not None:
        named = np.concatenate([g[rows] for g, rows in zip(groups, chosen, strict=True)])
        group = np.unique(named, return_inverse=True)[1]
    signs = rng.choice([-1.0, 1.0], (_NUM_PERMUTATIONS, group.max() + 1))[:, group]
    statistics = []
    for features in _features(x):
        # A difference of means, and the same with random signs around the mean of each set.
        centred = features.copy()
        for part in (is_top, ~is_top):
            centred[part] -= np.abs(labels[part]) @ features[part]
        statistics.append(
            np.concatenate([_lengths(labels[None], features), _lengths(signs * labels, centred)])
        )
    return _smallest_p(statistics)


def independence(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the p-value of "x and y are independent", from normal scores, [N, Dx] and [N, Dy]."""
    rows = _some(rng, x)
    x, y = x[rows], y[rows]
    orders = [np.arange(len(x)), *(rng.permutation(len(x)) for _ in range(_NUM_PERMUTATIONS))]
    statistics = []
    for of_x, of_y in zip(_features(x, False), _features(y, False), strict=True):
        statistics.append(np.array([np.sum((of_x.T @ of_y[order]) ** 2) for order in orders]))
    return _smallest_p(statistics)


def smallest_kl(sizes: tuple[float, float], num_columns: int) -> float:
    """Returns the KL divergence that a test of the columns' means finds in 80% of cases."""
    limit = chi2.ppf(0.95, num_columns)
    needed = brentq(lambda c: ncx2.sf(limit, num_columns, c) - 0.8, 1e-3, 1e4)
    return float(needed * (1.0 / sizes[0] + 1.0 / sizes[1]) / 2.0)


def _some(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return np.sort(rng.permutation(len(x))[:_MAX_ROWS])


def _features(x: np.ndarray, products: bool = True) -> list[np.ndarray]:
    """Returns whitened columns, and whitened columns with their squares and products."""
    x = x[:, :_MAX_COLUMNS]
    upper = np.triu_indices(x.shape[1] if products and x.shape[1] <= _MAX_PAIRED else 1, 1)
    more = np.concatenate([x, x**2, x[:, upper[0]] * x[:, upper[1]]], axis=1)
    return [_whitened(x), _whitened(more)]


def _whitened(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(axis=0)
    std = centred.std(axis=0)
    centred = centred / np.where(std > 1e-9, std, np.inf)
    num, size = centred.shape
    values, vectors = np.linalg.eigh(centred.T @ centred / num)
    whitened: np.ndarray = centred @ (vectors / np.sqrt(np.maximum(values, 0.0) + size / num))
    return whitened


def _lengths(draws: np.ndarray, features: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.sum((draws @ features) ** 2, axis=1)
    return lengths


def _smallest_p(statistics: list[np.ndarray]) -> float:
    """Returns the p-value of the first draw by the smallest p-value of several statistics."""
    # The share of draws that are at least as large, of every draw.
    shares = np.min([rankdata(-s.round(12), method="max") for s in statistics], axis=0)
    return float(np.mean(shares <= shares[0]))

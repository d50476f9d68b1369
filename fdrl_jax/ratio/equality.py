"""An exact test, of equal sets or of independent pairs, by permutations of normal scores.

Reference: Westfall and Young, "Resampling-based multiple testing", 1993.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2, rankdata

__all__ = ["independence", "smallest_kl"]
__dir__ = __all__.copy

_NUM_PERMUTATIONS = 499
_MAX_ROWS, _MAX_COLUMNS = 10_000, 300
_MAX_PAIRED = 20  # No products for more columns.


def independence(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the p-value of "x and y are independent", [N, Dx] and [N, Dy].

    Two sets have one distribution if their rows are independent of the set that they come from. The
    statistics are sums of squared correlations, of columns and of all features; the p-value is that
    of the smaller one of two.
    """
    chosen = rng.permutation(len(x))[:_MAX_ROWS]
    features = list(zip(_features(x[chosen]), _features(y[chosen]), strict=True))
    values = [[float(np.sum((a.T @ b) ** 2)) for a, b in features]]
    for _ in range(_NUM_PERMUTATIONS):
        order = rng.permutation(len(chosen))
        values.append([float(np.sum((a[order].T @ b) ** 2)) for a, b in features])
    shares = rankdata(-np.round(values, 12), method="max", axis=0).min(axis=1)
    return float(np.mean(shares <= shares[0]))


def _features(x: np.ndarray) -> list[np.ndarray]:
    """Returns whitened columns, and whitened columns with their squares and products.

    The covariance has a ridge, because there may be more features than rows.
    """
    x = x[:, :_MAX_COLUMNS]
    upper = np.triu_indices(x.shape[1] if x.shape[1] <= _MAX_PAIRED else 1, 1)
    found = []
    for features in (x, np.concatenate([x, x**2, x[:, upper[0]] * x[:, upper[1]]], axis=1)):
        centred = features - features.mean(axis=0)
        std = centred.std(axis=0)
        centred = centred / np.where(std > 1e-9, std, np.inf)
        num, size = centred.shape
        values, vectors = np.linalg.eigh(centred.T @ centred / num)
        scale = np.sqrt(num * (np.maximum(values, 0.0) + size / num))
        found.append(centred @ (vectors / scale))
    return found


def smallest_kl(sizes: tuple[float, float], num_columns: int) -> float:
    """Returns the KL divergence that a test of the columns' means finds in 80% of cases."""
    limit = chi2.ppf(0.95, num_columns)
    needed = brentq(lambda c: ncx2.sf(limit, num_columns, c) - 0.8, 1e-3, 1e4)
    return float(needed * (1.0 / sizes[0] + 1.0 / sizes[1]) / 2.0)

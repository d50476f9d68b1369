"""What needs no network: maps of columns, a quadratic log-ratio, and exact tests of equality.

The quadratic log-ratio is exact for Gaussians: a ridge logistic regression, one per fold, in
float64. The tests compare normal scores, their squares and their products by two statistics of
Hotelling's kind with a ridge. Labels (or, for pairs, partners) are permuted; of rows with weights
or groups, which cannot be permuted, the contributions get random signs.

References: Phipson and Smyth, "Permutation p-values should never be zero", 2010; Westfall and
Young, "Resampling-based multiple testing", 1993 (smallest p-value of several tests).
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from scipy.stats import chi2, ncx2, rankdata

__all__ = ["Columns", "Pair", "Quadratic", "fit", "independence", "smallest_kl", "two_sample"]
__dir__ = __all__.copy

Array = jax.Array
Pair = tuple[np.ndarray, np.ndarray]  # Of the numerator and of the denominator.

NUM_FOLDS = 5
_NUM_KNOTS = 201
_MAX_PAIRS = 200  # Products of columns in the regression; others are screened out.
_MAX_PAIRED, _MAX_COLUMNS = 100, 500  # No products, and no regression, for more columns.
_NUM_PERMUTATIONS = 499
_MAX_TESTED_ROWS, _MAX_TESTED_PAIRED, _MAX_TESTED = 5_000, 20, 300
# Rows of each set that the regression uses; more cost time and add little.
_MIN_ROWS, _MAX_WORK = 10_000, 1e8  # Work: rows times squared number of features.
# Strength of the ridge for columns, and for their squares and products, in rows.
_PENALTIES = ((100.0, 1000.0), (10.0, 1000.0), (10.0, 100.0), (10.0, 10.0), (1.0, 1.0), (0.1, 0.1))


def _flat(x: Any) -> Any:
    return x.reshape(len(x), math.prod(x.shape[1:]))


class Columns(NamedTuple):
    """A map of columns: shift and scale, [...], then normal scores of knots, [D, K] each, if any.

    The scale of constant columns is 0. Knots are values of standardised columns.
    """

    shift: Array | np.ndarray
    scale: Array | np.ndarray
    knots: Array | None = None
    normal: Array | None = None

    def standardised(self, x: Any) -> Any:
        """Returns standardised columns, in the precision of `x`."""
        return (x - self.shift) * self.scale

    def normalised(self, x: Array) -> Array:
        """Returns normal scores of standardised columns, [B, ...], if there are knots."""
        if self.knots is None or self.normal is None:
            return x
        flat = jax.vmap(jnp.interp, (1, 0, 0), 1)(_flat(x), self.knots, self.normal)
        return flat.reshape(x.shape)


class Quadratic(NamedTuple):
    """A log-ratio `constant + linear x + x' square x` of flattened columns, one per fold.

    Shapes [F], [F, D], and [F, D, D] or only its diagonal, [F, D].
    """

    constant: Array | np.ndarray
    linear: Array | np.ndarray
    square: Array | np.ndarray

    def __call__(self, x: Any) -> Any:
        """Returns log-ratios of one fold, `x [B, ...] -> [B]`."""
        x = _flat(x)
        product = x @ self.square if self.square.ndim == 2 else x * self.square
        return self.constant + x @ self.linear + (product * x).sum(axis=-1)

    def adjacent(self, waymarks: Array) -> tuple[Array, Array]:
        """Returns log-ratios of one fold's numerator and denominator, [2, B, ...] -> [1, B]."""
        return self(waymarks[0])[None], self(waymarks[1])[None]


def plain_and_ranked(rows: Pair, weights: Pair) -> Iterator[Columns]:
    """Returns both maps of the columns.

    A density ratio is invariant under monotone maps of columns, so ranks lose nothing, and a single
    large value does not set the scale. They help with heavy tails and harm otherwise.
    """
    means = [np.tensordot(w, x, 1) for w, x in zip(weights, rows, strict=True)]
    mean = (means[0] + means[1]) / 2
    variance = np.zeros_like(mean)
    for w, x in zip(weights, rows, strict=True):
        variance += np.tensordot(w, (x - mean) ** 2, 1) / 2
    varies = variance > (1e-12 * np.abs(mean)) ** 2
    scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    yield Columns(mean, scale)
    pooled = np.concatenate([((x - mean) * scale).reshape(len(x), -1) for x in rows])
    knots = [_knots(column, np.concatenate(weights) / 2) for column in pooled.T]
    first, second = (np.stack(part) for part in zip(*knots, strict=True))
    yield Columns(mean, scale, jnp.float32(first), jnp.float32(second))


def _knots(column: np.ndarray, weights: np.ndarray) -> Pair:
    values, where = np.unique(np.float32(column), return_inverse=True)
    mass = np.bincount(where, weights, len(values))
    values, mass = values[mass > 0.0], mass[mass > 0.0]
    normal = ndtri(np.clip(np.cumsum(mass) - mass / 2, 1e-9, 1.0 - 1e-9))
    if len(values) > _NUM_KNOTS:
        even = np.linspace(normal[0], normal[-1], _NUM_KNOTS)
        values, normal = np.interp(ndtr(even), ndtr(normal), values), even
    missing = 0, _NUM_KNOTS - len(values)
    return np.pad(values, missing, mode="edge"), np.pad(normal, missing, mode="edge")


def fit(rows: Pair, weights: Pair, folds: Pair) -> tuple[Quadratic, Pair]:
    """Fits the log-ratio with the ridge of the lowest loss; with it, out-of-fold log-ratios."""
    top, bottom = (np.asarray(x, np.float64).reshape(len(x), -1) for x in rows)
    size = top.shape[1]
    if size > _MAX_COLUMNS:
        zeros = np.zeros((NUM_FOLDS, size))
        return Quadratic(zeros[:, 0], zeros, zeros), (np.zeros(len(top)), np.zeros(len(bottom)))
    x = np.concatenate([top, bottom])
    sign = np.repeat([1.0, -1.0], [len(top), len(bottom)])
    weight, fold = np.concatenate(weights) / 2, np.concatenate(folds)
    most = max(_MIN_ROWS, _MAX_WORK / min(size**2 / 2 + 2 * size, 2 * size + _MAX_PAIRS) ** 2)
    # Folds are random, so that every n-th row is a random one.
    parts = [np.arange(len(y)) % max(len(y) // most, 1) == 0 for y in (top, bottom)]
    used, num_rows = np.concatenate(parts), min(part.sum() for part in parts)
    outputs = np.zeros((len(_PENALTIES), len(x)))
    found: list[list[Quadratic]] = [[] for _ in _PENALTIES]
    for index in range(NUM_FOLDS):
        train, held_out = used & (fold != index), fold == index
        for number, quadratic in enumerate(_path(x[train], sign[train], weight[train], num_rows)):
            found[number].append(quadratic)
            outputs[number, held_out] = quadratic(x[held_out])
    best = int(np.argmin(np.logaddexp(0.0, -sign * outputs) @ weight))
    stacked = Quadratic(*(np.stack(part) for part in zip(*found[best], strict=True)))
    return stacked, (outputs[best, : len(top)], outputs[best, len(top) :])


def _path(x: np.ndarray, sign: np.ndarray, weight: np.ndarray, rows: int) -> Iterator[Quadratic]:
    """Returns the regressions of one fold with weaker and weaker ridges."""
    size = x.shape[1]
    for is_set in (sign > 0, sign < 0):
        weight = np.where(is_set, weight / (2.0 * weight[is_set].sum()), weight)
    pairs = _pairs(x, sign, weight)
    features = np.concatenate([x, x**2, x[:, pairs[0]] * x[:, pairs[1]]], axis=1)
    mean = weight @ features
    std = np.sqrt(weight @ (features - mean) ** 2)
    std = np.where(std > 1e-6, std, np.inf)
    features = np.concatenate([np.ones((len(x), 1)), (features - mean) / std], axis=1)
    beta = np.zeros(features.shape[1])
    for of_columns, of_products in _PENALTIES:
        penalty = np.full(len(beta), of_products / rows)
        penalty[: size + 1] = of_columns / rows
        penalty[0] = 1e-9
        beta = _logistic(features, sign, weight, penalty, beta)
        slope = beta[1:] / std
        square = slope[size : 2 * size]
        if size <= _MAX_PAIRED:
            square = np.diag(square)
            for half in (pairs, pairs[::-1]):
                square[half] += slope[2 * size :] / 2
        yield Quadratic(beta[0] - slope @ mean, slope[:size], square)


def _pairs(x: np.ndarray, sign: np.ndarray, weight: np.ndarray) -> Pair:
    """Returns the pairs of columns whose products differ most between the sets."""
    first, second = np.triu_indices(x.shape[1] if x.shape[1] <= _MAX_PAIRED else 1, 1)
    if len(first) <= _MAX_PAIRS:
        return first, second
    gap = (x * (sign * weight)[:, None]).T @ x
    size = np.sqrt((x**2 * weight[:, None]).T @ x**2)
    score = (np.abs(gap) / np.maximum(size, 1e-12))[first, second]
    best = np.argsort(score)[-_MAX_PAIRS:]
    return first[best], second[best]


def _logistic(
    features: np.ndarray, sign: np.ndarray, weight: np.ndarray, penalty: np.ndarray, beta: Any
) -> np.ndarray:
    """Minimises the weighted logistic loss with a ridge by Newton's method from `beta`."""

    def objective(beta: np.ndarray) -> float:
        loss = np.logaddexp(0.0, -sign * (features @ beta)) @ weight
        return float(loss + 0.5 * penalty @ beta**2)

    value = objective(beta)
    for _ in range(12):
        wrong = expit(-sign * (features @ beta))
        gradient = penalty * beta - features.T @ (weight * sign * wrong)
        curvature = (features * (weight * wrong * (1.0 - wrong))[:, None]).T @ features
        step = np.linalg.solve(curvature + np.diag(penalty), gradient)
        size = 1.0
        while (new := objective(beta - size * step)) > value and size > 1e-3:
            size /= 2.0
        if new > value:
            break
        beta, value, gain = beta - size * step, new, value - new
        if gain < 1e-7:
            break
    found: np.ndarray = beta
    return found


def two_sample(
    rng: np.random.Generator,
    top: np.ndarray,
    bottom: np.ndarray,
    weights: Pair | None = None,
    groups: Pair | None = None,
) -> float:
    """Returns the p-value of "both sets have one distribution", from normal scores, [N or M, D]."""
    chosen = [_some(rng, x) for x in (top, bottom)]
    x = np.concatenate([part[rows] for part, rows in zip((top, bottom), chosen, strict=True)])
    n, m = map(len, chosen)
    is_top = np.arange(n + m) < n
    if weights is None and groups is None:
        labels = np.where(is_top, 1.0 / n, -1.0 / m)
        draws = np.stack([labels, *(rng.permutation(labels) for _ in range(_NUM_PERMUTATIONS))])
        return _smallest_p([_lengths(draws, f) for f in _features(x)])
    weights = weights or (np.ones(len(top)), np.ones(len(bottom)))
    of_top, of_bottom = (w[rows] for w, rows in zip(weights, chosen, strict=True))
    labels = np.concatenate([of_top / of_top.sum(), -of_bottom / of_bottom.sum()])
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
        of_signs = _lengths(signs * labels, centred)
        statistics.append(np.concatenate([_lengths(labels[None], features), of_signs]))
    return _smallest_p(statistics)


def independence(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the p-value of "x and y are independent", from normal scores, [N, Dx] and [N, Dy]."""
    rows = _some(rng, x)
    x, y = x[rows], y[rows]
    orders = [np.arange(len(x)), *(rng.permutation(len(x)) for _ in range(_NUM_PERMUTATIONS))]
    pairs = zip(_features(x, False), _features(y, False), strict=True)
    return _smallest_p([np.array([np.sum((a.T @ b[o]) ** 2) for o in orders]) for a, b in pairs])


def smallest_kl(sizes: tuple[float, float], num_columns: int) -> float:
    """Returns the KL divergence that a test of the columns' means finds in 80% of cases."""
    limit = chi2.ppf(0.95, num_columns)
    needed = brentq(lambda c: ncx2.sf(limit, num_columns, c) - 0.8, 1e-3, 1e4)
    return float(needed * (1.0 / sizes[0] + 1.0 / sizes[1]) / 2.0)


def _some(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    return np.sort(rng.permutation(len(x))[:_MAX_TESTED_ROWS])


def _features(x: np.ndarray, products: bool = True) -> list[np.ndarray]:
    """Returns whitened columns, and whitened columns with their squares and products."""
    x = x[:, :_MAX_TESTED]
    upper = np.triu_indices(x.shape[1] if products and x.shape[1] <= _MAX_TESTED_PAIRED else 1, 1)
    found = []
    for features in (x, np.concatenate([x, x**2, x[:, upper[0]] * x[:, upper[1]]], axis=1)):
        centred = features - features.mean(axis=0)
        std = centred.std(axis=0)
        centred = centred / np.where(std > 1e-9, std, np.inf)
        num, size = centred.shape
        values, vectors = np.linalg.eigh(centred.T @ centred / num)
        found.append(centred @ (vectors / np.sqrt(np.maximum(values, 0.0) + size / num)))
    return found


def _lengths(draws: np.ndarray, features: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.sum((draws @ features) ** 2, axis=1)
    return lengths


def _smallest_p(statistics: list[np.ndarray]) -> float:
    # The share of draws that are at least as large, of every draw.
    shares = np.min([rankdata(-s.round(12), method="max") for s in statistics], axis=0)
    return float(np.mean(shares <= shares[0]))

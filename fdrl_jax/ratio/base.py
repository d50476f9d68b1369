"""What needs no network: maps of columns, and a log-ratio that is exact for Gaussians.

It is a ridge logistic regression on columns, squares and products, one per fold, in float64.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, ndtr, ndtri

__all__ = ["Columns", "Pair", "Quadratic", "fit", "logistic"]
__dir__ = __all__.copy

Array = jax.Array
Pair = tuple[np.ndarray, np.ndarray]  # Of the numerator and of the denominator.

NUM_FOLDS = 5
_NUM_KNOTS = 201
_MAX_PAIRS = 200  # Products of columns in the regression; others are screened out.
_MAX_PAIRED, _MAX_COLUMNS = 100, 500  # No products, and no regression, for more columns.
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
        """Returns log-ratios of one fold, `x [B, ...] -> [B, 1]`."""
        x = _flat(x)
        product = x @ self.square if self.square.ndim == 2 else x * self.square
        return (self.constant + x @ self.linear + (product * x).sum(axis=-1))[:, None]


def plain_and_ranked(rows: Pair, weights: Pair) -> Iterator[Columns]:
    """Returns both maps: a ratio is invariant under monotone maps, and ranks have no tails."""
    both = list(zip(weights, rows, strict=True))
    mean = np.mean([np.tensordot(w, x, 1) for w, x in both], axis=0)
    variance = np.mean([np.tensordot(w, (x - mean) ** 2, 1) for w, x in both], axis=0)
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


def fit(rows: Pair, weights: Pair, folds: Pair) -> Quadratic:
    """Fits the log-ratio without each fold, with the ridge of the lowest loss on these."""
    top, bottom = (np.asarray(x, np.float64).reshape(len(x), -1) for x in rows)
    size = top.shape[1]
    if size > _MAX_COLUMNS:
        return Quadratic(np.zeros(NUM_FOLDS), *np.zeros((2, NUM_FOLDS, size)))
    x = np.concatenate([top, bottom])
    sign = np.repeat([1.0, -1.0], [len(top), len(bottom)])
    weight, fold = np.concatenate(weights) / 2, np.concatenate(folds)
    most = max(_MIN_ROWS, _MAX_WORK / min(size**2 / 2 + 2 * size, 2 * size + _MAX_PAIRS) ** 2)
    # Folds are random, so that every n-th row is a random one.
    parts = [np.arange(len(y)) % max(len(y) // most, 1) == 0 for y in (top, bottom)]
    used, num_rows = np.concatenate(parts), min(part.sum() for part in parts)
    losses = np.zeros(len(_PENALTIES))
    found: list[list[Quadratic]] = [[] for _ in _PENALTIES]
    for index in range(NUM_FOLDS):
        train, held_out = used & (fold != index), fold == index
        for number, quadratic in enumerate(_path(x[train], sign[train], weight[train], num_rows)):
            found[number].append(quadratic)
            output = quadratic(x[held_out])[:, 0]
            losses[number] += np.logaddexp(0.0, -sign[held_out] * output) @ weight[held_out]
    return Quadratic(*(np.stack(part) for part in zip(*found[losses.argmin()], strict=True)))


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
        beta = logistic(features, sign, weight, penalty, beta)
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
    gap = (x * (sign * weight)[:, None]).T @ x
    size = np.sqrt((x**2 * weight[:, None]).T @ x**2)
    score = (np.abs(gap) / np.maximum(size, 1e-12))[first, second]
    best = np.sort(np.argsort(score)[-_MAX_PAIRS:])
    return first[best], second[best]


def logistic(
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

"""What needs no network: maps of columns, and a log-ratio that is quadratic in them.

The quadratic log-ratio is exact for Gaussians. It is fitted by ridge logistic regression, once per
fold, in float64.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, ndtr, ndtri

__all__ = ["Base", "Columns", "Quadratic", "Sets", "fit", "plain_and_ranked"]
__dir__ = __all__.copy

Array = jax.Array

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
    """A map of each column: standardised, and then, with knots, made normal by its ranks.

    Attributes:
      shift: [...].
      scale: [...]; 0 for constant columns.
      knots: of standardised columns, flattened, [D, K], or `None`.
      normal: their normal scores, [D, K], or `None`.
    """

    shift: Array | np.ndarray
    scale: Array | np.ndarray
    knots: Array | None = None
    normal: Array | None = None

    def standardised(self, x: Any) -> Any:
        """Returns standardised columns; in NumPy, with the precision of `x`."""
        return (x - self.shift) * self.scale

    def normalised(self, x: Array) -> Array:
        """Returns normal scores of standardised columns, [B, ...], if there are knots."""
        if self.knots is None or self.normal is None:
            return x
        flat = jax.vmap(jnp.interp, (1, 0, 0), 1)(_flat(x), self.knots, self.normal)
        return flat.reshape(x.shape)


class Quadratic(NamedTuple):
    """A log-ratio `constant + linear x + x' square x` of flattened columns, for each of F folds.

    Attributes:
      constant: [F].
      linear: [F, D].
      square: [F, D, D], or only its diagonal, [F, D].
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


class Base(NamedTuple):
    """A fitted regression: with the out-of-fold log-ratios of both sets, and their losses."""

    quadratic: Quadratic
    top: np.ndarray
    bottom: np.ndarray
    loss: float


class Sets(NamedTuple):
    """Both sets of a fit.

    Attributes:
      rows: numerator [N, ...] and denominator [M, ...].
      weights: of the rows, [N] and [M], each with the sum 1.
      folds: of the rows, [N] and [M].
    """

    rows: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]
    folds: tuple[np.ndarray, np.ndarray]


def plain_and_ranked(sets: Sets) -> Iterator[Columns]:
    """Returns both maps of the columns.

    A density ratio is invariant under monotone maps of columns, so ranks lose nothing, and a single
    large value does not set the scale. They help with heavy tails and harm otherwise.
    """
    means = [np.tensordot(w, x, 1) for w, x in zip(sets.weights, sets.rows, strict=True)]
    mean = (means[0] + means[1]) / 2
    variance = np.zeros_like(mean)
    for w, x in zip(sets.weights, sets.rows, strict=True):
        variance += np.tensordot(w, (x - mean) ** 2, 1) / 2
    varies = variance > (1e-12 * np.abs(mean)) ** 2
    scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    yield Columns(mean, scale)
    pooled = np.concatenate([((x - mean) * scale).reshape(len(x), -1) for x in sets.rows])
    knots = [_knots(column, np.concatenate(sets.weights) / 2) for column in pooled.T]
    first, second = (np.stack(part) for part in zip(*knots, strict=True))
    yield Columns(mean, scale, jnp.float32(first), jnp.float32(second))


def _knots(column: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, where = np.unique(np.float32(column), return_inverse=True)
    mass = np.bincount(where, weights, len(values))
    values, mass = values[mass > 0.0], mass[mass > 0.0]
    normal = ndtri(np.clip(np.cumsum(mass) - mass / 2, 1e-9, 1.0 - 1e-9))
    if len(values) > _NUM_KNOTS:
        even = np.linspace(normal[0], normal[-1], _NUM_KNOTS)
        values, normal = np.interp(ndtr(even), ndtr(normal), values), even
    missing = 0, _NUM_KNOTS - len(values)
    return np.pad(values, missing, mode="edge"), np.pad(normal, missing, mode="edge")


def fit(sets: Sets, num_folds: int) -> Base:
    """Fits the quadratic log-ratio to mapped columns with the ridge of the lowest loss."""
    top, bottom = (np.asarray(x, np.float64).reshape(len(x), -1) for x in sets.rows)
    size = top.shape[1]
    if size > _MAX_COLUMNS:
        zeros = np.zeros((num_folds, size))
        return Base(
            Quadratic(zeros[:, 0], zeros, zeros),
            np.zeros(len(top)),
            np.zeros(len(bottom)),
            float(np.log(2.0)),
        )
    x = np.concatenate([top, bottom])
    sign = np.repeat([1.0, -1.0], [len(top), len(bottom)])
    weight, fold = np.concatenate(sets.weights) / 2, np.concatenate(sets.folds)
    used = np.ones(len(x), bool)
    most = max(_MIN_ROWS, _MAX_WORK / min(size**2 / 2 + 2 * size, 2 * size + _MAX_PAIRS) ** 2)
    for start, rows in ((0, top), (len(top), bottom)):
        # Folds are random, so that every n-th row is a random one.
        used[start : start + len(rows)] = np.arange(len(rows)) % max(len(rows) // most, 1) == 0
    num_rows = min(used[: len(top)].sum(), used[len(top) :].sum())
    outputs = np.zeros((len(_PENALTIES), len(x)))
    found: list[list[Quadratic]] = [[] for _ in _PENALTIES]
    for index in range(num_folds):
        train, held_out = used & (fold != index), fold == index
        for number, quadratic in enumerate(_path(x[train], sign[train], weight[train], num_rows)):
            found[number].append(quadratic)
            y = x[held_out]
            outputs[number, held_out] = quadratic(y)
    losses = np.logaddexp(0.0, -sign * outputs) @ weight
    best = int(np.argmin(losses))
    stacked = Quadratic(*(np.stack(part) for part in zip(*found[best], strict=True)))
    scores = outputs[best]
    return Base(stacked, scores[: len(top)], scores[len(top) :], float(losses[best]))


def _path(
    x: np.ndarray, sign: np.ndarray, weight: np.ndarray, num_rows: int
) -> Iterator[Quadratic]:
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
        penalty = np.full(len(beta), of_products / num_rows)
        penalty[: size + 1] = of_columns / num_rows
        penalty[0] = 1e-9
        beta = _logistic(features, sign, weight, penalty, beta)
        slope = beta[1:] / std
        square = slope[size : 2 * size]
        if size <= _MAX_PAIRED:
            square = np.diag(square)
            square[pairs] += slope[2 * size :] / 2
            square[pairs[::-1]] += slope[2 * size :] / 2
        yield Quadratic(beta[0] - slope @ mean, slope[:size], square)


def _pairs(x: np.ndarray, sign: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    features: np.ndarray,
    sign: np.ndarray,
    weight: np.ndarray,
    penalty: np.ndarray,
    beta: np.ndarray,
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
    return beta

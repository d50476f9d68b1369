"""What needs no network: maps of columns, and a log-ratio that is exact for Gaussians.

It is a ridge logistic regression on columns, squares and products, one per fold, in float64.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, ndtr, ndtri

__all__ = ["Columns", "Quadratic", "Side", "fit", "flat", "logistic"]
__dir__ = __all__.copy

Array = jax.Array

NUM_FOLDS = 5
_NUM_KNOTS = 201
_MAX_PAIRS = 200  # Products of columns in the regression; others are screened out.
_MAX_COLUMNS = 500  # No regression for more.
_MAX_PRODUCTS = 1_000_000  # Rows times squared columns in the regression, of 10,000 rows or more.
# Strengths of the ridge for columns, squares and products: these powers of ten, in rows.
_PENALTIES = 10.0 ** np.array(
    [[2, 3, 3], [1, 3, 3], [1, 2, 3], [1, 1, 3], [1, 1, 2], [1, 1, 1], [0, 0, 0], [-1, -1, -1]]
)


def flat(x: Any) -> Any:
    """Returns `x [B, ...]` as [B, D]."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


class Side(NamedTuple):
    """The numerator or the denominator."""

    rows: Any  # [N, ...]
    weight: np.ndarray  # With the sum 1, [N].
    group: np.ndarray  # Numbers; rows with the same one count as one in standard errors, [N].
    fold: np.ndarray  # [N]

    def without(self, fold: int) -> Any:
        """Returns the weights of the rows of the other folds, with the sum 1, [N]."""
        kept = self.weight * (self.fold != fold)
        return kept / kept.sum()


class Columns(NamedTuple):
    """A map of columns: shift and scale, [...], then standardised knots and scores, [D, 2, K]."""

    shift: Array | np.ndarray
    scale: Array | np.ndarray
    knots: Array | None = None

    def __call__(self, x: Any) -> Array:
        """Returns standardised columns, or their normal scores if there are knots, [B, ...]."""
        plain = jnp.asarray((x - self.shift) * self.scale, jnp.float32)
        if self.knots is None:
            return plain
        scores = jax.vmap(jnp.interp, (1, 0, 0), 1)(flat(plain), self.knots[:, 0], self.knots[:, 1])
        return scores.reshape(plain.shape)


class Quadratic(NamedTuple):
    """Log-ratios `constant + linear x + x' square x` of flattened columns, H per fold.

    Shapes [F, H], [F, H, D], and [F, H, D, D] or only its diagonal, [F, H, D].
    """

    constant: Array
    linear: Array
    square: Array

    def __call__(self, x: Array) -> Array:
        """Returns log-ratios of one fold, `x [B, ...] -> [B, H]`."""
        x = flat(x)
        # Large terms cancel, so that the lower precision of some devices is not enough.
        product = functools.partial(jnp.matmul, precision="highest")
        scaled = x * self.square[:, None] if self.square.ndim == 2 else product(x, self.square)
        return product(x, self.linear.T) + self.constant + (scaled * x).sum(axis=-1).T


def plain_and_ranked(sides: tuple[Side, Side]) -> Iterator[Columns]:
    """Returns both maps: a ratio is invariant under monotone maps, and ranks have no tails."""
    mean = np.mean([np.tensordot(s.weight, s.rows, 1) for s in sides], axis=0)
    squares = [np.tensordot(s.weight, (s.rows - mean) ** 2, 1) for s in sides]
    variance = np.mean(squares, axis=0)
    varies = variance > (1e-12 * np.abs(mean)) ** 2
    scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    yield Columns(mean, scale)
    pooled = np.concatenate([flat((s.rows - mean) * scale) for s in sides])
    weight = np.concatenate([s.weight for s in sides]) / 2
    yield Columns(mean, scale, jnp.float32(np.stack([_knots(c, weight) for c in pooled.T])))


def _knots(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns values of a column and their normal scores, [2, K]."""
    values, where = np.unique(np.float32(column), return_inverse=True)
    mass = np.bincount(where, weights, len(values))
    values, mass = values[mass > 0.0], mass[mass > 0.0]
    normal = ndtri(np.clip(np.cumsum(mass) - mass / 2, 1e-9, 1.0 - 1e-9))
    if len(values) > _NUM_KNOTS:
        even = np.linspace(normal[0], normal[-1], _NUM_KNOTS)
        values, normal = np.interp(ndtr(even), ndtr(normal), values), even
    missing = _NUM_KNOTS - len(values)
    return np.pad(np.stack([values, normal]), ((0, 0), (0, missing)), mode="edge")


def fit(sides: tuple[Side, Side]) -> Quadratic:
    """Fits the log-ratio without each fold, with the ridge of the lowest loss on these."""
    rows, weight, _, fold = (np.concatenate(part) for part in zip(*sides, strict=True))
    x, sizes = flat(np.float64(rows)), [len(s.rows) for s in sides]
    size = x.shape[1]
    if size > _MAX_COLUMNS:
        zeros = jnp.zeros((NUM_FOLDS, 1, size), jnp.float32)
        return Quadratic(zeros[..., 0], zeros, zeros)
    sign = np.repeat([1.0, -1.0], sizes)
    # Folds are random, so that every n-th row is a random one.
    most = max(_MAX_PRODUCTS // size**2, 10_000)
    used = np.concatenate([np.arange(num) % max(num // most, 1) == 0 for num in sizes])
    paths = [list(_path(x, sign, weight, used, fold == index)) for index in range(NUM_FOLDS)]
    best = np.sum([[loss for loss, _ in path] for path in paths], axis=0).argmin()
    chosen = zip(*(path[best][1] for path in paths), strict=True)
    return Quadratic(*(jnp.float32(np.stack(part)) for part in chosen))


def _path(
    x: np.ndarray, sign: np.ndarray, weight: np.ndarray, used: np.ndarray, held_out: np.ndarray
) -> Iterator[Any]:
    """Returns regressions with weaker and weaker ridges, each with its loss on held-out rows."""
    rows, size = min(used[sign > 0].sum(), used[sign < 0].sum()), x.shape[1]
    y, y_sign, y_weight = x[held_out], sign[held_out], weight[held_out]
    x, sign, weight = (part[used & ~held_out] for part in (x, sign, weight))
    for is_set in (sign > 0, sign < 0):
        weight = np.where(is_set, weight / (2.0 * weight[is_set].sum()), weight)
    # Products of the pairs of columns for which they differ most between the sets.
    first, second = np.triu_indices(size, 1)
    gap = np.abs((x * (sign * weight)[:, None]).T @ x)
    spread = np.maximum(np.sqrt((x**2 * weight[:, None]).T @ x**2), 1e-12)
    best = np.sort(np.argsort((gap / spread)[first, second])[-_MAX_PAIRS:])
    pairs = first[best], second[best]
    features = np.concatenate([x, x**2, x[:, pairs[0]] * x[:, pairs[1]]], axis=1)
    mean = weight @ features
    std = np.sqrt(weight @ (features - mean) ** 2)
    std = np.where(std > 1e-6, std, np.inf)
    features = np.concatenate([np.ones((len(x), 1)), (features - mean) / std], axis=1)
    beta, parts = np.zeros(features.shape[1]), (1, size, size, len(best))
    for strengths in _PENALTIES:
        penalty = np.repeat([1e-9, *strengths / rows], parts)
        beta = logistic(features, sign, weight, penalty, beta)
        slope = beta[1:] / std
        square = np.diag(slope[size : 2 * size])
        for half in (pairs, pairs[::-1]):
            square[half] += slope[2 * size :] / 2
        constant, linear = beta[0] - slope @ mean, slope[:size]
        output = constant + y @ linear + (y @ square * y).sum(axis=1)
        loss = np.logaddexp(0.0, -y_sign * output) @ y_weight
        yield loss, (constant[None], linear[None], square[None])


def logistic(
    features: np.ndarray, sign: np.ndarray, weight: np.ndarray, penalty: np.ndarray, beta: Any
) -> Any:
    """Minimises the weighted logistic loss with a ridge, from `beta`."""

    def objective(beta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (features @ beta)
        gradient = penalty * beta - features.T @ (weight * sign * expit(-margin))
        return np.logaddexp(0.0, -margin) @ weight + 0.5 * penalty @ beta**2, gradient

    def curvature(beta: np.ndarray) -> Any:
        wrong = expit(-sign * (features @ beta))
        scaled = features * np.sqrt(weight * wrong * (1.0 - wrong))[:, None]
        return scaled.T @ scaled + np.diag(penalty)

    options = {"gtol": 1e-6}
    return minimize(
        objective, beta, method="trust-exact", jac=True, hess=curvature, options=options
    ).x

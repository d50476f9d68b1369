"""Mutual information: the ratio of pairs over pairs whose partners were exchanged."""

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from fdrl_jax.ratio import evidence
from fdrl_jax.ratio.base import Sets
from fdrl_jax.ratio.fit import (
    NUM_FOLDS,
    Problem,
    assign_folds,
    checked_array,
    checked_weights,
    fit,
    generator,
)
from fdrl_jax.ratio.network import SupportsNetwork
from fdrl_jax.ratio.result import DensityRatio
from fdrl_jax.ratio.training import DEFAULTS, Options

__all__ = ["MutualInformation", "mutual_information"]
__dir__ = __all__.copy

Array = jax.Array
_MAX_COPIES, _MAX_PAIRS = 2, 20_000


class MutualInformation(NamedTuple):
    """An estimate of `I(x; y)`.

    Attributes:
      value: the estimate, in nats: the mean of `log r` over all pairs, each by a fit without it.
        This is a plug-in estimate, neither an upper nor a lower bound.
      standard_error: over pairs; the error of the ratio is not included.
      ratio: `r(x, y) = p(x, y) / (p(x) p(y))`, a function of the concatenated columns of a pair,
        [B, Dx + Dy].
    """

    value: float
    standard_error: float
    ratio: DensityRatio


def mutual_information(
    key: Array,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    network: SupportsNetwork | None = None,
    num_waymarks: int | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    options: Options = DEFAULTS,
) -> MutualInformation:
    """Estimates the mutual information `E[log p(x, y) / (p(x) p(y))]` of paired samples.

    The numerator is the pairs. The denominator is pairs whose `y` comes from another row, drawn
    again in each training step. A bridge mixes only `y`.

    Args:
      key: a key.
      x: samples of `x`, [N, ...], at least 20.
      y: samples of `y`, [N, ...], in the same order.
      network: see `fit_ratio`; its input is `[x, y]`, flattened, [B, Dx + Dy].
      num_waymarks: see `fit_ratio`.
      weights: a weight per pair, [N], at least 0.
      groups: a label per pair, [N]; see `fit_ratio`.
      options: how to train.

    Returns:
      The estimate, its standard error and the ratio.

    Raises:
      TypeError, ValueError: see `fit_ratio`; also unless there is one `y` per `x`.

    Reference: Belghazi et al., "Mutual Information Neural Estimation", ICML 2018 (exchanged
    partners); Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
    """
    if y is None:
        raise TypeError(
            "mutual_information needs a key first: mutual_information(jax.random.key(0), x, y)"
        )
    xs, ys = checked_array("x", x), checked_array("y", y)
    if len(xs) != len(ys):
        raise ValueError(
            f"x and y must be pairs, one y per x, got {len(xs)} and {len(ys)} examples"
        )
    num = len(xs)
    xs, ys = xs.reshape(num, -1), ys.reshape(num, -1)
    rng, weight = generator(key), checked_weights("weights", weights, num)
    labels = None
    if groups is not None:
        labels = np.unique(np.asarray(groups), return_inverse=True)[1]
        if labels.shape != (num,):
            raise ValueError(f"groups must be one label per pair, [{num}], got {labels.shape}")
    folds = assign_folds(rng, (num,), None if labels is None else (labels,))
    copies = max(min(_MAX_COPIES, _MAX_PAIRS // num), 1)
    partners = [_exchanged(rng, folds) for _ in range(copies)]
    columns = xs.shape[1]

    def p_value(top: np.ndarray, bottom: np.ndarray) -> float:
        if weights is not None or groups is not None:
            return 1.0  # Rows cannot be permuted; the fitted ratio decides.
        return evidence.independence(rng, top[:, :columns], top[:, columns:])

    bottom = np.concatenate([np.concatenate([xs, ys[other]], axis=1) for other in partners])
    both = np.concatenate([weight * weight[other] for other in partners])
    group = np.arange(num) if labels is None else labels
    problem = Problem(
        Sets(
            (np.concatenate([xs, ys], axis=1), bottom),
            (weight, both / both.sum()),
            (folds, np.tile(folds, copies)),
        ),
        (group, np.tile(group, copies)),
        np.arange(columns + ys.shape[1]) >= columns,
        p_value,
    )
    ratio = fit(key, problem, network, num_waymarks, options)
    return MutualInformation(*ratio.divergence("kl"), ratio)


def _exchanged(rng: np.random.Generator, folds: np.ndarray) -> np.ndarray:
    """Returns another row of the same fold for every row."""
    partner = np.arange(len(folds))
    for index in range(NUM_FOLDS):
        rows = rng.permutation(np.flatnonzero(folds == index))
        partner[rows] = np.roll(rows, 1)
    return partner

"""A fitted density ratio: values at new points, weights, divergences, and whether to trust it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.special import expit
from scipy.stats import rankdata

from fdrl_jax import divergences
from fdrl_jax._checks import refuse_frame
from fdrl_jax.divergences import FDivergence
from fdrl_jax.ratio.base import Columns, logistic
from fdrl_jax.ratio.equality import smallest_kl
from fdrl_jax.ratio.training import Model, fold_log_ratios

__all__ = ["Check", "DensityRatio", "Estimate", "Scores", "area_under_curve", "total"]
__dir__ = __all__.copy

Array = jax.Array

_MAX_LOG_RATIO = 80.0  # exp(89) is infinite in float32.
_SEPARABLE_AUC = 0.999
_MIN_EFFECTIVE = 30.0
_STATIC = {"static": True}
_LIMITS = 0.75, 1.33  # Of the calibration slope and the mean ratio.


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        known = f"{self.value:.2f} +- {self.standard_error:.2f}"
        return "unknown" if np.isnan(self.value) else known

    def outside(self, low: float, high: float) -> bool:
        """Returns whether all values within two standard errors are outside of the limits."""
        margin = 2.0 * self.standard_error
        return self.value + margin < low or self.value - margin > high


class Scores(NamedTuple):
    """Log-ratios of the rows of a set, each by a fit without this row.

    Weights have the sum 1, and are 0 where the fit knows the row (behind a bridge). Rows with one
    number in `group` count as one in standard errors. [N] each.
    """

    log_ratio: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    def mean(self, values: np.ndarray) -> Estimate:
        """Returns the weighted mean of values of the rows."""
        mean = float(self.weight @ values)
        sums = np.bincount(self.group, self.weight * (values - mean))
        return Estimate(mean, float(np.sqrt(sums @ sums)))


def total(scores: tuple[Scores, Scores], values: Sequence[np.ndarray]) -> Estimate:
    """Returns the mean of values of the rows of the numerator plus that of the denominator."""
    top, bottom = (of_set.mean(part) for of_set, part in zip(scores, values, strict=True))
    error = float(np.hypot(top.standard_error, bottom.standard_error))
    return Estimate(top.value + bottom.value, error)


class Check(NamedTuple):
    """Whether a ratio is right, and its weights usable, by rows that were not fitted.

    Attributes:
      trusted: whether the ratio is right, as far as these rows show.
      usable: whether the weights of the denominator are.
      verdict: both in sentences, with the reason and what to do.
      p_value: of "both sets have one distribution".
      smallest_kl: the KL divergence that would have been found in four of five cases.
      slope: of the true log-ratio over the estimated one: 1 if it is calibrated, below 1 if it
        claims too much; NaN for separable sets.
      mean_ratio: mean of `r` over the denominator; 1 for the true ratio.
      auc: area under the curve of `log r`: 0.5 for equal sets, 1 for separable ones.
      effective_sample_size: of the weighted denominator.
    """

    trusted: bool
    usable: bool
    verdict: str
    p_value: float
    smallest_kl: float
    slope: Estimate
    mean_ratio: Estimate
    auc: float
    effective_sample_size: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DensityRatio:
    """The ratio `r(x) = numerator(x) / denominator(x)`, as `fit_ratio` returns it; a pytree.

    Attributes:
      scores: the rows of numerator and denominator.
      columns: the map of the columns.
      model: log-ratios of mapped columns, with a leading axis of folds.
      aucs: area under the curve of each pair of adjacent waymarks on held-out examples, H numbers.
      waymarks: positions of the waymarks, from 0 (numerator) to 1 (denominator), H + 1 numbers.
      p_value: of "both sets have one distribution".
    """

    scores: tuple[Scores, Scores]
    columns: Columns
    model: Model
    aucs: tuple[float, ...] = dataclasses.field(metadata=_STATIC)
    waymarks: tuple[float, ...] = dataclasses.field(metadata=_STATIC)
    p_value: float = dataclasses.field(default=1.0, metadata=_STATIC)

    def __repr__(self) -> str:
        sizes = [f"{len(s.log_ratio):,}" for s in self.scores]
        kl, reverse = self.divergence("kl"), self.divergence("reverse_kl")
        return (
            f"Density ratio of {sizes[0]} over {sizes[1]} rows with "
            f"{self.columns.shift.size:,} columns: KL {kl} nats, reverse KL {reverse}, p-value of "
            f"equality {self.p_value:.2g}. check() says whether to trust it."
        )

    def log_ratio(self, x: ArrayLike, *, alpha: float = 0.0) -> Array:
        """Returns `log r(x)` in nats at any points, [B], the mean of all folds; NaN where `x` is.

        It works under `jit` and `grad`.

        Args:
          x: points with the columns of the fit, [B, ...], or [B] for data of one column.
          alpha: for the relative ratio `r / (alpha r + 1 - alpha)` (Yamada et al., 2013), which is
            at most `1 / alpha`.
        """
        return _relative(jnp.mean(self._of_folds(x), axis=0), alpha)

    def standard_error(self, x: ArrayLike) -> Array:
        """Returns the jackknife error of `log r(x)`, [B]; 0 behind a bridge, which has one fold."""
        values = self._of_folds(x)
        return jnp.sqrt(len(values) - 1.0) * jnp.std(values, axis=0)

    def _of_folds(self, x: ArrayLike) -> Array:
        refuse_frame("x", x)
        shape = self.columns.shift.shape
        if not isinstance(x, jax.Array):  # JAX would make int32 of int64, and float32 of float64.
            x = np.asarray(x, np.float64)
        if x.ndim == 1 and shape == (1,):
            x = x[:, None]
        if x.shape[1:] != shape or x.ndim == 0:
            raise ValueError(
                f"x must have the columns of the fit, [B, {', '.join(map(str, shape))}], got "
                f"shape {x.shape}"
            )
        return fold_log_ratios(self.model, self.columns(x))

    def weights(self, x: ArrayLike | None = None, *, alpha: float = 0.0) -> Array:
        """Returns weights of samples of the denominator that represent the numerator, [B].

        Their mean is 1, as scikit-learn's `sample_weight` wants them. Without samples `x`, they
        are those of the rows of the fit, each by a fit without this row and times its own weight.
        """
        if x is not None:
            log_weight = self.log_ratio(x, alpha=alpha)
        else:
            value, weight, _ = map(jnp.asarray, self.scores[1])
            log_weight = _relative(value, alpha) + jnp.log(weight)
        return len(log_weight) * jax.nn.softmax(log_weight)

    def effective_sample_size(self, x: ArrayLike | None = None) -> float:
        """Returns Kong's `(sum w)^2 / sum w^2`, from 1 to the number of samples; see `weights`."""
        return _effective_sample_size(np.asarray(self.weights(x), np.float64))

    def divergence(self, divergence: str | FDivergence = "kl") -> Estimate:
        """Estimates `D_f(numerator || denominator) = E_denominator[f(r)]`, neither bound, in nats.

        The standard error leaves out that of the ratio. KL is `E_numerator[log r]`, and reverse KL
        `-E_denominator[log r]`; others use the balance heuristic (Veach and Guibas, 1995), the mean
        of `f(r) / (1 + r)` over the numerator plus that over the denominator.
        """
        divergence = divergences.get(divergence)
        top, bottom = self.scores
        if divergence.f is divergences.KL.f:
            return top.mean(top.log_ratio)
        if divergence.f is divergences.REVERSE_KL.f:
            return bottom.mean(-bottom.log_ratio)
        parts = []
        for scores in self.scores:
            ratio = np.exp(np.clip(scores.log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
            with jax.enable_x64(True):  # Powers of large ratios overflow in float32.
                parts.append(np.asarray(divergence.f(jnp.asarray(ratio))) / (1.0 + ratio))
        return total(self.scores, parts)

    def check(self) -> Check:
        """Checks the ratio by rows that were not fitted; two answers, about it and its weights."""
        top, bottom = self.scores
        n, m = (_effective_sample_size(np.bincount(s.group, s.weight)) for s in self.scores)
        ratios = np.exp(np.minimum(bottom.log_ratio, _MAX_LOG_RATIO))
        auc = area_under_curve(top.log_ratio, bottom.log_ratio, top.weight, bottom.weight)
        smallest = smallest_kl((n, m), self.columns.shift.size)
        # No row of separable sets is near both, so their calibration is unknown.
        slope = _slope(self.scores) if auc <= _SEPARABLE_AUC else Estimate(np.nan, np.inf)
        mean, worth = bottom.mean(ratios), _effective_sample_size(bottom.weight * ratios)
        wrong, p_value = self._wrong(slope, mean, worth), f"{self.p_value:.2g}"
        if max(self.aucs) <= _SEPARABLE_AUC and self.p_value > 0.05:
            wrong = (
                f"There is not enough evidence to distinguish the sets (p = {p_value}): n = {n:.0f}"
                f" and {m:.0f}, smallest KL that would show {smallest:.2g} nats."
            )
        usable = not wrong and worth >= _MIN_EFFECTIVE
        passes = f"The ratio passes all checks (p-value of equality {p_value}, calibration slope "
        verdict = wrong or f"{passes}{slope}, mean ratio {mean})."
        verdict += " Its weights are worth " if usable else " Do not use its weights, worth "
        verdict += f"{worth:.0f} of {np.count_nonzero(bottom.weight)} rows."
        figures = self.p_value, smallest, slope, mean, auc, worth
        return Check(not wrong, usable, verdict, *figures)

    def _wrong(self, slope: Estimate, mean: Estimate, worth: float) -> str:
        """Returns why the ratio is wrong and what to do, or nothing if it passes."""
        kls, is_bridge = (self.divergence("kl"), self.divergence("reverse_kl")), len(self.aucs) > 1
        negative = [kl.outside(0.0, np.inf) for kl in kls]
        reason, todo = "", "use more examples or another network"
        if max(self.aucs) > _SEPARABLE_AUC:
            reason = f"a classifier separates adjacent sets (AUC {max(self.aucs):.4f}), so the size"
            reason += " of the ratio is extrapolated"
            todo = "use more waymarks" if is_bridge else "leave num_waymarks out"
        elif any(negative) if is_bridge else all(negative):
            reason = f"its KL divergences are {kls[0]} and {kls[1]}, and both must be positive"
        elif slope.outside(*_LIMITS):
            much = "much" if slope.value < 1.0 else "little"
            reason = f"it claims too {much}: its calibration slope is {slope}, not 1"
        elif worth >= _MIN_EFFECTIVE and mean.outside(*_LIMITS):
            reason = f"its mean over the denominator is {mean}, not 1"
        return f"Do not trust the ratio: {reason}; {todo}." if reason else ""


def area_under_curve(upper: Any, lower: Any, *weights: np.ndarray) -> float:
    """Returns the probability that a number of `upper`, [n], is above one of `lower`, [m].

    Equal numbers count half (Mann and Whitney's statistic). Weights of both have the sum 1.
    """
    n, m = len(upper), len(lower)
    values = np.concatenate([upper, lower])
    of_upper, of_lower = weights or (np.full(n, 1.0 / n), np.full(m, 1.0 / m))
    place = rankdata(values, method="dense").astype(int) - 1  # Floats in recent versions.
    mass = np.bincount(place[n:], of_lower, place.max() + 1)
    below = np.cumsum(mass) - mass / 2.0
    return float(of_upper @ below[place[:n]])


def _effective_sample_size(weights: np.ndarray) -> float:
    return float(weights.sum() ** 2 / max(np.sum(weights**2), 1e-300))


def _relative(log_ratio: Array, alpha: float) -> Array:
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha must be at least 0 and below 1, got {alpha}")
    return -jnp.logaddexp(jnp.log(alpha), jnp.log1p(-alpha) - log_ratio)


def _slope(scores: tuple[Scores, Scores]) -> Estimate:
    """Returns the slope of a logistic regression on `log r`, with its sandwich error."""
    values = [np.clip(s.log_ratio, -50.0, 50.0) for s in scores]
    x = [np.stack([np.ones_like(value), value], axis=1) for value in values]
    both, sign = np.concatenate(x), np.repeat([1.0, -1.0], [len(part) for part in x])
    weight = np.concatenate([s.weight for s in scores]) / 2.0
    beta = logistic(both, sign, weight, np.full(2, 1e-9), np.array([0.0, 1.0]))
    wrong = expit(-sign * (both @ beta))
    curvature = (both * (weight * wrong * (1.0 - wrong))[:, None]).T @ both + 1e-9 * np.eye(2)
    influence = sign * wrong * (both @ np.linalg.inv(curvature)[1]) / 2.0
    error = total(scores, np.split(influence, [len(x[0])])).standard_error
    return Estimate(float(beta[1]), error)

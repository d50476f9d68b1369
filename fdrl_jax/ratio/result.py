"""A fitted density ratio: values at new points, weights, divergences, and whether to trust it."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.special import expit
from scipy.stats import rankdata

from fdrl_jax import _keys, divergences
from fdrl_jax.bregman import Bregman
from fdrl_jax.divergences import FDivergence
from fdrl_jax.ratio.bridges import Gaussians
from fdrl_jax.ratio.network import Heads, to_log_ratio

Array = jax.Array

_CHUNK = 8192  # Points per call of the network, which bounds memory.
_MAX_LOG_RATIO = 80.0  # exp(89) is infinite in float32.
_NUM_BINS = 10
_SEPARABLE_AUC, _DIFFERENT_AUC = 0.999, 0.6
_MIN_EFFECTIVE = 30.0
_MAX_CALIBRATION_ERROR = 0.05


class Estimate(NamedTuple):
    """A number and its standard error over the held-out examples."""

    value: float
    standard_error: float


class Check(NamedTuple):
    """Whether a ratio can be trusted, on held-out examples.

    Attributes:
      trusted: the conclusion.
      verdict: the conclusion in a sentence, with its reason and what to do.
      mean_ratio: mean of `r` over the denominator; 1 for the true ratio.
      auc: area under the curve of `log r` between numerator and denominator. 0.5 if they cannot be
        distinguished, 1 if they are separable.
      reweighted_auc: the same for a new classifier between the numerator and the denominator
        reweighted by `r`; 0.5 for the true ratio. NaN if the effective sample size is too small.
      effective_sample_size: of the held-out denominator.
      predicted: mean predicted probability that an example is from the numerator, in each bin,
        [10]; NaN for an empty bin. The sets have equal weight.
      observed: the share that is from the numerator, in each bin, [10].
      calibration_error: mean distance of both over all examples, less the standard error of each
        bin.
    """

    trusted: bool
    verdict: str
    mean_ratio: Estimate
    auc: float
    reweighted_auc: float
    effective_sample_size: float
    predicted: np.ndarray
    observed: np.ndarray
    calibration_error: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DensityRatio:
    """The ratio `r(x) = numerator(x) / denominator(x)`, as `fit_ratio` returns it.

    It is a pytree, so it can be an argument of compiled functions.

    Attributes:
      heads: the network, one output per pair of adjacent waymarks.
      loss: the loss that trained it.
      bridge: the bridge.
      params: parameters of the network.
      ends: Gaussians with the moments of numerator and denominator, [2, ...], whose log-ratio is
        added to that of the network. Without waymarks they are equal.
      mean: mean of each feature, [...].
      inverse_std: inverse standard deviation of each feature, [...]; 0 for constant features.
      differs: whether the held-out loss is significantly lower than that of the constant ratio 1.
        If not, the ratio is 1.
      waymarks: positions of the waymarks, from 0 (numerator) to 1 (denominator), H + 1 numbers.
      aucs: area under the curve of each adjacent pair on held-out examples, H numbers.
      num_steps: training steps of the last fit.
      held_out_numerator: examples that were not trained on, standardised, [n, ...].
      held_out_denominator: the same for the denominator, [m, ...].
      columns: names of the features, if a set was a data frame.
    """

    heads: Heads = dataclasses.field(metadata={"static": True})
    loss: Bregman = dataclasses.field(metadata={"static": True})
    bridge: str = dataclasses.field(metadata={"static": True})
    params: Any
    ends: Gaussians
    mean: Array
    inverse_std: Array
    differs: bool = dataclasses.field(metadata={"static": True})
    waymarks: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    aucs: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    num_steps: int = dataclasses.field(metadata={"static": True})
    held_out_numerator: Array
    held_out_denominator: Array
    columns: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def log_ratio(self, x: ArrayLike) -> Array:
        """Returns `log r(x)` at any points; a function for `jit` and `grad`.

        Args:
          x: points with the features of the fit, [B, ...], or [B] for data of one feature.

        Returns:
          `log numerator(x) / denominator(x)`, [B], in nats.

        Raises:
          ValueError: for other features, or a data frame with other columns.
        """
        check_columns({"the fit": self.columns, "x": column_names(x)})
        x = jnp.asarray(x, jnp.float32)  # JAX would make int32 of int64, and wrap around.
        if x.ndim == 1 and self.mean.shape == (1,):
            x = x[:, None]
        if x.shape[1:] != self.mean.shape or x.ndim == 0:
            raise ValueError(
                f"x must have the features of the fit, [B, {', '.join(map(str, self.mean.shape))}],"
                f" got shape {x.shape}"
            )
        return self._of_standardised((x - self.mean) * self.inverse_std)

    def _of_standardised(self, x: Array) -> Array:
        if not self.differs or not len(x):
            return jnp.zeros(len(x))
        if isinstance(x, jax.core.Tracer) or len(x) <= _CHUNK:
            value: Array = _log_ratio(self.heads, self.loss, self.params, self.ends, x)
            return value
        parts = [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]
        return jnp.concatenate([self._of_standardised(part) for part in parts])

    def weights(self, x: ArrayLike, *, truncate: float | None = None) -> Array:
        """Returns importance weights of samples of the denominator, normalised to mean 1.

        Weighted samples of the denominator represent the numerator: `E_denominator[w h(x)]` is
        `E_numerator[h(x)]`. They fit scikit-learn's `sample_weight`.

        Args:
          x: samples of the denominator, [B, ...].
          truncate: if given, weights above this multiple of their mean are set to it before they
            are normalised again. `sqrt(B)` keeps the estimate consistent (Ionides 2008).

        Returns:
          The weights, [B].

        Raises:
          ValueError: for other features, or for a multiple that is not above 0.

        Reference: Ionides, "Truncated importance sampling", 2008.
        """
        if truncate is not None and not truncate > 0.0:
            raise ValueError(f"truncate must be above 0, got {truncate}")
        return _weights(self.log_ratio(x), truncate)

    def effective_sample_size(self, x: ArrayLike) -> float:
        """Returns `(sum w)^2 / sum w^2` of samples of the denominator, from 1 to their number.

        Args:
          x: samples of the denominator, [B, ...].

        Raises:
          ValueError: for other features.

        Reference: Kong, "A note on importance sampling using standardized weights", 1992.
        """
        return _effective_sample_size(self.weights(x))

    def divergence(
        self,
        divergence: str | FDivergence = "kl",
        numerator: ArrayLike | None = None,
        denominator: ArrayLike | None = None,
    ) -> Estimate:
        """Estimates `D_f(numerator || denominator) = E_denominator[f(r)]`.

        Both sets are used with the balance heuristic: the divergence is the mean of
        `f(r) / (1 + r)` over the numerator plus that over the denominator. These terms vary far
        less than `f(r)`. KL is `E_numerator[log r]`, and reverse KL `-E_denominator[log r]`. The
        estimate is neither an upper nor a lower bound.

        Args:
          divergence: the f-divergence, or its name, as for `divergences.get`.
          numerator: examples that were not used in the fit, [n, ...]; by default those held out.
          denominator: the same for the denominator, [m, ...].

        Returns:
          The divergence, in nats for KL, and its standard error. The estimate is a sum of means, so
          the error is that of the bootstrap over examples in closed form. It does not include the
          error of the ratio.

        Raises:
          ValueError: for an unknown divergence, for other features, or without examples.

        References: Veach and Guibas, "Optimally combining sampling techniques for Monte Carlo
        rendering", 1995 (balance heuristic); Efron, "Bootstrap methods", 1979.
        """
        divergence = divergences.get(divergence)
        log_r = [
            np.asarray(
                self._of_standardised(held_out) if given is None else self.log_ratio(given),
                np.float64,
            )
            for given, held_out in (
                (numerator, self.held_out_numerator),
                (denominator, self.held_out_denominator),
            )
        ]
        if not all(map(len, log_r)):
            raise ValueError(
                "a divergence needs examples of both sets, got "
                f"{len(log_r[0])} of the numerator and {len(log_r[1])} of the denominator"
            )
        if divergence.f is divergences.KL.f:
            terms = [log_r[0]]
        elif divergence.f is divergences.REVERSE_KL.f:
            terms = [-log_r[1]]
        else:
            terms = [_balanced(divergence, values) for values in log_r]
        return _sum_of_means(terms)

    def check(self, key: Array) -> Check:
        """Checks the ratio on held-out examples.

        Args:
          key: a key, for a new classifier between the numerator and the reweighted denominator.

        Returns:
          Numbers, a calibration curve and a conclusion.
        """
        # Imported here, because the new classifier is itself a fitted ratio.
        from fdrl_jax.ratio.fitting import MIN_EXAMPLES, fit_ratio

        sets = self.held_out_numerator, self.held_out_denominator
        top, bottom = (np.asarray(self._of_standardised(x), np.float64) for x in sets)
        mean_ratio = _sum_of_means([np.exp(np.minimum(bottom, _MAX_LOG_RATIO))])
        auc = area_under_curve(top, bottom)
        weights = np.asarray(_weights(jnp.asarray(bottom, jnp.float32), None), np.float64)
        effective = _effective_sample_size(weights)

        pick_key, fit_key = jax.random.split(_keys.typed(key))
        half = [len(x) // 2 for x in sets]
        reweighted_auc = float("nan")
        if min(half) >= MIN_EXAMPLES and effective >= _MIN_EFFECTIVE:
            # Examples are drawn in each half separately, so that none is in both.
            halves = []
            for index, part in enumerate((slice(None, half[1]), slice(half[1], None))):
                pick = jax.random.fold_in(pick_key, index)
                log_w = jnp.asarray(bottom[part])
                rows = jax.random.categorical(pick, log_w, shape=log_w.shape)
                halves.append(sets[1][part][rows])
            with warnings.catch_warnings():
                # Of features that are constant in a half only.
                warnings.simplefilter("ignore", UserWarning)
                again = fit_ratio(
                    fit_key, sets[0][: half[0]], halves[0], bridge="none", num_steps=400
                )
            scores = again.log_ratio(sets[0][half[0] :]), again.log_ratio(halves[1])
            reweighted_auc = area_under_curve(*scores)

        predicted, observed, error = _calibration(top, bottom)
        kls = float(top.mean()), float(-bottom.mean())
        trusted, verdict = _verdict(self, auc, mean_ratio, reweighted_auc, effective, kls, error)
        return Check(
            trusted,
            verdict,
            mean_ratio,
            auc,
            reweighted_auc,
            effective,
            predicted,
            observed,
            error,
        )


def column_names(values: ArrayLike) -> tuple[str, ...]:
    """Returns the names of the features of a data frame; empty for anything else."""
    return tuple(name for name in getattr(values, "columns", ()) if isinstance(name, str))


def check_columns(named: Mapping[str, tuple[str, ...]]) -> None:
    """Checks that those that have columns have the same: another order has the same shape.

    Raises:
      ValueError: for different columns.
    """
    given = {name: columns for name, columns in named.items() if columns}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"{' and '.join(given)} must have the same columns in the same order, got "
            f"{' and '.join(map(', '.join, given.values()))}"
        )


def area_under_curve(upper: ArrayLike, lower: ArrayLike) -> float:
    """Returns the probability that a number of `upper`, [n], is above one of `lower`, [m].

    Equal numbers count half (Mann and Whitney's statistic).
    """
    upper, lower = np.asarray(upper), np.asarray(lower)
    ranks = rankdata(np.concatenate([upper, lower]))[: len(upper)]
    num_pairs = len(upper) * len(lower)
    return float((ranks.sum() - len(upper) * (len(upper) + 1) / 2) / num_pairs)


def _weights(log_ratio: Array, truncate: float | None) -> Array:
    weights = len(log_ratio) * jax.nn.softmax(log_ratio)
    if truncate is not None:
        weights = jnp.minimum(weights, truncate)
        weights = weights / jnp.mean(weights)
    return weights


def _effective_sample_size(weights: ArrayLike) -> float:
    weights = np.asarray(weights, np.float64)
    return float(weights.sum() ** 2 / np.sum(weights**2))


def _sum_of_means(terms: Sequence[np.ndarray]) -> Estimate:
    value = sum(float(term.mean()) for term in terms)
    variance = sum(float(term.var()) / len(term) for term in terms)
    return Estimate(value, variance**0.5)


def _balanced(divergence: FDivergence, log_r: np.ndarray) -> np.ndarray:
    ratio = np.exp(np.clip(log_r, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    with jax.enable_x64(True):  # Powers of large ratios overflow in float32.
        values: np.ndarray = np.asarray(divergence.f(jnp.asarray(ratio)))
    terms: np.ndarray = values / (1.0 + ratio)
    return terms


def _calibration(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns predicted probabilities and observed shares by bin, and the calibration error."""
    sizes = len(top), len(bottom)
    predictions = expit(np.concatenate([top, bottom]))
    is_top = np.repeat([1.0, 0.0], sizes)
    weights = np.repeat([0.5 / num for num in sizes], sizes)
    bins = np.minimum((predictions * _NUM_BINS).astype(int), _NUM_BINS - 1)
    total, predicted, observed = (
        np.bincount(bins, weights * values, _NUM_BINS) for values in (1.0, predictions, is_top)
    )
    seen = total > 0.0
    predicted, observed = (
        np.divide(values, total, out=np.full(_NUM_BINS, np.nan), where=seen)
        for values in (predicted, observed)
    )
    p = predicted[seen]
    # The share is that of weighted counts of both sets, whose sizes may differ.
    per_example = (1.0 - p) / sizes[0] + p / sizes[1]
    errors = np.sqrt(p * (1.0 - p) * per_example / (2.0 * total[seen]))
    distances = np.abs(p - observed[seen]) - errors
    return predicted, observed, float(np.sum(total[seen] * np.maximum(distances, 0.0)))


def _verdict(
    ratio: DensityRatio,
    auc: float,
    mean: Estimate,
    reweighted_auc: float,
    effective: float,
    kls: tuple[float, float],
    calibration_error: float,
) -> tuple[bool, str]:
    kl, reverse_kl = kls
    num = len(ratio.held_out_denominator)
    if not ratio.differs:
        return True, (
            "The sets cannot be distinguished on held-out examples, so the ratio is 1 everywhere."
        )
    if max(ratio.aucs) > _SEPARABLE_AUC:
        todo = "use bridge='mixing'" if ratio.bridge == "none" else "use more waymarks"
        return False, (
            "Do not trust the ratio: a classifier separates adjacent sets (AUC "
            f"{max(ratio.aucs):.4f}), so the size of the ratio is extrapolated; {todo}."
        )
    if kl <= 0.0 or reverse_kl <= 0.0:
        return False, (
            f"Do not trust the ratio: its KL divergences are {kl:.2f} and {reverse_kl:.2f}, and "
            "both must be positive. The network extrapolates from one waymark to the others; use "
            "another network, such as fdrl.ratio.Quadratic(), or another bridge."
        )
    if calibration_error > _MAX_CALIBRATION_ERROR:
        return False, (
            f"Do not trust the ratio: its probabilities are off by {calibration_error:.2f} on "
            "average; use more examples, more steps or another network."
        )
    if effective < min(_MIN_EFFECTIVE, num / 2):
        return False, (
            f"Do not use the weights: they have an effective sample size of {effective:.1f} of "
            f"{num} held-out examples. The logarithm of the ratio may be right, but cannot be "
            "checked by reweighting."
        )
    if reweighted_auc > _DIFFERENT_AUC:
        return False, (
            "Do not trust the ratio: after reweighting, a new classifier still separates the "
            f"sets (AUC {reweighted_auc:.2f}); use more examples, more steps or another network."
        )
    if abs(mean.value - 1.0) > max(4.0 * mean.standard_error, 0.1):
        return False, (
            f"Do not trust the ratio: its mean over the denominator is {mean.value:.2f} +- "
            f"{mean.standard_error:.2f} in place of 1; use more examples or more steps."
        )
    if np.isnan(reweighted_auc):
        return True, (
            f"The ratio passes the checks that {len(ratio.held_out_numerator)} and {num} held-out "
            f"examples allow (AUC {auc:.2f}). They are too few to check it by reweighting."
        )
    return True, (
        f"The ratio passes all checks on held-out examples (AUC {auc:.2f} before and "
        f"{reweighted_auc:.2f} after reweighting)."
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_ratio(heads: Heads, loss: Bregman, params: Any, ends: Gaussians, x: Array) -> Array:
    top, bottom = ends.log_density(x[None])
    learnt: Array = jnp.sum(to_log_ratio(loss, heads.outputs(params, x)), axis=-1)
    # Far away, both densities are so small that the learnt part would be rounded off next to one.
    log_ratio: Array = learnt + (top - bottom)
    return log_ratio

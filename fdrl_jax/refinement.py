"""Better samples by a ratio that is already trained: refinement and rejection.

Every ratio here is q/p, samples over data; of a discriminator with the logit `d = log p/q` of
"real", it is `-d`.

Refinement (DGflow) moves samples along such a ratio, which belongs to the samples before the flow:
away from these and from the data its gradient has no meaning. To improve a generator reliably,
train from its samples: `fit(key, data, prior=samples)`.

Rejection is for samples of a trained flow, which moves hardly any mass from one mode to another.
Samples kept with a probability proportional to `1 / r(x)` follow the data, as far as `r` is right.

References: Ansari, Ang and Soh, "Refining Deep Generative Models via Discriminator Gradient Flow",
arXiv 2012.00780. Azadi et al., "Discriminator Rejection Sampling", ICLR 2019.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdrl_jax import _keys, metrics
from fdrl_jax._arrays import as_floating
from fdrl_jax._checks import check_count, check_not_bytes, check_number
from fdrl_jax.divergences import FDivergence, first_variation
from fdrl_jax.langevin import drift, flow, has_only_numbers

__all__ = ["Refined", "keep", "refine"]
__dir__ = __all__.copy

Array = jax.Array
_RELATIVE_STEP = 0.02  # Of the spread of the data.
_NUM_COMPARED = 2_000  # Samples whose distance to data is measured.
_MAX_OUTSIDE = 0.05  # The share of refined samples outside of the range of the given ones.


class Refined(NamedTuple):
    """What `refine` returns with real data to compare with."""

    samples: Array  # [B, ...], after the best number of steps.
    num_steps: int  # This number; 0 if no step brought them nearer to the data.
    distances: np.ndarray  # The energy distance to the data after 0, 1, ... steps, while finite.


def refine(
    key: Array,
    x: Array,
    log_ratio: Callable[[Array], Array],
    *,
    real: Array | None = None,
    num_steps: int = 50,
    step_size: float | None = None,
    divergence: str | FDivergence = "logd",
    entropy_weight: float = 0.01,
) -> Array | Refined:
    """Moves samples towards the data along the density ratio of both (DGflow).

        refined = fdrl.refine(key, x, lambda x: -discriminator(x), real=held_out).samples

    With `real`, data that the ratio was not trained on, the samples of the step that is nearest to
    them are returned. Without it, nothing shows whether the samples improved. Samples that leave
    the range of the given ones, or log-ratios that cannot be theirs, cause a warning.

    Args:
      key: as for `flow`.
      x: samples, [B, ...].
      log_ratio: `x [B, ...] -> [B]`, `log q/p` of samples over data.
      real: data, [N, ...]; about 2,000 are enough.
      num_steps: the (largest) number of steps.
      step_size: `η`; by default, the first steps are 2% of the spread of the data, or of the
        samples where there are no data.
      divergence: the f-divergence, or a name for `divergences.get`. The drift of log D fades where
        samples are as likely as data; that of KL does not.
      entropy_weight: `γ`, which draws noise of the scale `sqrt(2 η γ)`; 0 draws none.

    Returns:
      The refined samples, [B, ...]; with `real`, a `Refined`.

    Raises:
      ValueError: for arguments out of range, and for real data inside `jax.jit`.
    """
    for name, array in (("x", x), ("real", real)):
        check_not_bytes(name, array)
    x, points = as_floating(x), as_floating(x if real is None else real)
    if not x.ndim or not (x.size and points.size):
        raise ValueError(f"refine needs samples and data, got shapes {x.shape} and {points.shape}")
    for name, array in (("samples", x), ("data", points)):
        if not (isinstance(array, jax.core.Tracer) or np.isfinite(array).all()):
            raise ValueError(f"the {name} are not finite")
    check_count("num_steps", num_steps)
    check_number("entropy_weight", entropy_weight)
    potential = first_variation(log_ratio, divergence, output="log_ratio")
    values = log_ratio(x)
    is_traced = isinstance(values, jax.core.Tracer)
    if not is_traced:
        _check_values(values)
    spread = _root_mean_square(points - jnp.mean(points, axis=0))
    if step_size is None:
        speed = _root_mean_square(drift(x, potential))
        # Samples that are all equal, or a ratio without a slope, have no scale.
        eta = jnp.where(speed > 0.0, _RELATIVE_STEP * spread / (speed + (speed == 0.0)), 0.0)
        if not is_traced and not eta > 0.0:
            warnings.warn("the samples, or their log-ratios, are all equal: no step", stacklevel=2)
    else:
        check_number("step_size", step_size)
        eta = jnp.asarray(step_size, x.dtype)
    noise = jnp.sqrt(2.0 * eta * entropy_weight) if entropy_weight else 0.0
    scales: dict[str, Any] = {"step_size": eta, "noise_scale": noise}
    if real is None:
        refined: Array = flow(key, x, potential, num_steps=num_steps, **scales)
        if not is_traced:
            _warn_outside(x, refined)
        return refined
    if is_traced or isinstance(real, jax.core.Tracer):
        raise ValueError("refine compares samples with real data outside of jax.jit only")

    def one_step(x: Array, k: int) -> Any:
        return flow(key, x, potential, num_steps=1, first_step=k, **scales)

    if not has_only_numbers(potential):
        one_step = jax.jit(one_step)  # Else `flow` reuses what it compiled for an earlier call.
    compared, best, distances = np.asarray(real)[:_NUM_COMPARED], x, list[float]()
    for step in range(num_steps + 1):
        x = one_step(x, step - 1) if step else x
        distance = metrics.energy_distance(np.asarray(x[:_NUM_COMPARED]), compared)
        if not math.isfinite(distance):
            warnings.warn(f"the flow diverged in step {step}; it is not followed", stacklevel=2)
            break
        distances.append(distance)
        best = x if np.argmin(distances) == step else best
    return Refined(best, int(np.argmin(distances)), np.asarray(distances))


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x).reshape(len(x), -1), axis=-1)))


def _check_values(log_ratio: Array) -> None:
    """Warns of values that are not log-ratios of the samples, whose mean is a KL divergence."""
    mean = float(jnp.mean(log_ratio))
    if math.isnan(mean):
        raise ValueError("the log-ratio of a sample is NaN")
    error = float(jnp.std(log_ratio)) / len(log_ratio) ** 0.5
    # An estimate near 0 may be slightly below it, and a single sample has no error.
    if mean < -0.1 - 3.0 * error and len(log_ratio) > 1:
        reason = (
            f"the log-ratio of the samples is {mean:.3g} on average, but log q/p cannot be "
            "negative there. Pass the negative of a discriminator's logit of 'real'"
        )
    elif float(jnp.min(log_ratio)) >= 0.0 and float(jnp.max(log_ratio)) <= 1.0:
        reason = (
            "the log-ratios of the samples are all in [0, 1], which look like probabilities. Pass "
            "log q/p, the negative of a discriminator's logit before the sigmoid"
        )
    else:
        return
    warnings.warn(reason, stacklevel=3)


def _warn_outside(before: Array, after: Array) -> None:
    low, high = jnp.min(before, axis=0), jnp.max(before, axis=0)
    margin = 0.05 * (high - low)
    outside = (after < low - margin) | (after > high + margin) | jnp.isnan(after)
    share = float(jnp.mean(outside))
    if share > _MAX_OUTSIDE and len(before) > 1:  # A single sample has no range.
        warnings.warn(
            f"{share:.0%} of the refined numbers are outside of the range of the given samples, "
            "where the ratio was probably not trained; pass held-out data as real= to find the "
            "best number of steps, or train from these samples: fdrl.fit(key, data, prior=samples)",
            stacklevel=3,
        )


def keep(key: Array, log_ratio: ArrayLike, *, quantile: float = 0.05) -> Array:
    """Decides which samples are kept: `x` with probability `min(1, c / r(x))`.

        kept = samples[fdrl.refinement.keep(key, log_ratio(samples))]

    Args:
      key: one key, or one per example, [B].
      log_ratio: `log q/p` of the samples, [B].
      quantile: from 0 to 1; it sets `log c`, as a quantile of the log-ratios. With 0, rejection is
        exact on these samples, and a single one with a small ratio can make acceptance rare. A
        larger quantile accepts more, but too few of the samples with the smallest ratios.

    Returns:
      True for the samples to keep, [B]. Samples whose log-ratio is NaN are not kept.

    Raises:
      ValueError: for other shapes, another quantile, or if no log-ratio is finite.
    """
    log_ratio = jnp.asarray(log_ratio)
    if log_ratio.ndim != 1 or not log_ratio.size:
        raise ValueError(f"log-ratios must have shape [B] with B > 0, got {log_ratio.shape}")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be from 0 to 1, got {quantile}")
    bound = jnp.nanquantile(jnp.where(jnp.isfinite(log_ratio), log_ratio, jnp.nan), quantile)
    if not isinstance(bound, jax.core.Tracer) and np.isnan(bound):
        raise ValueError("none of the log-ratios is finite")
    # In float32 for outputs of half precision too, whose uniform numbers are coarse.
    key = _keys.named(_keys.typed(key), "keep")
    uniform = _keys.noise_like(key, log_ratio.astype(jnp.float32), jax.random.uniform)
    kept: Array = uniform < jnp.exp(jnp.minimum(0.0, bound - log_ratio))
    return kept

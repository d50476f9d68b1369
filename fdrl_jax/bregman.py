"""Bregman losses that train the density-ratio estimator.

For a convex `g` the Bregman divergence between the true ratio `q~/p` and its estimate `r` is, up to
a constant, `L = E_p[g'(r) r - g(r)] - E_q~[g'(r)]` (eq. 2 and 11); its minimiser is the true ratio.

Reference: Sugiyama, Suzuki and Kanamori, "Density-ratio matching under the Bregman divergence: a
unified framework of density-ratio estimation", 2012.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fdrl_jax._arrays import at_least_float32
from fdrl_jax._checks import check_name
from fdrl_jax.divergences import Output

__all__ = ["REGISTRY", "Bregman", "get", "loss"]
__dir__ = __all__.copy

Array = jax.Array
_MAX_EXPONENT = 40.0  # Adam squares the gradient, and exp(2 * 40) is finite in float32.
_MAX_LOG_RATIO = 60.0  # exp(89) is infinite in float32, and a batch of 10^12 must not sum to that.


class Bregman(NamedTuple):
    """A Bregman loss as a record of pure, element-wise functions.

    Attributes:
      name: the name under which `get` finds it.
      output: what the trained network returns, "ratio" or "log_ratio".
      real_term: network output on data -> `g'(r) r - g(r)`, up to a constant, stable. Where it
        grows as `exp(log r)` ("ukl"), its tangent at log r = 40 continues it, so that value and
        gradient stay finite.
      flowed_term: network output on flowed samples -> `-g'(r)`, up to a constant, stable.
    """

    name: str
    output: Output
    real_term: Callable[[Array], Array]
    flowed_term: Callable[[Array], Array]


def _exp(log_r: Array) -> Array:
    """Returns `exp`, continued by its tangent above 40, where the gradient stays `exp(40)`."""
    beyond = jnp.maximum(log_r - _MAX_EXPONENT, 0.0)
    return jnp.exp(jnp.minimum(log_r, _MAX_EXPONENT)) * (1.0 + beyond)


_LOSSES = (
    Bregman("lsif", "ratio", lambda out: 0.5 * out**2, lambda out: -out),
    Bregman("lr", "log_ratio", lambda o: -jax.nn.log_sigmoid(-o), lambda o: -jax.nn.log_sigmoid(o)),
    Bregman("ukl", "log_ratio", _exp, lambda out: -out),
)
REGISTRY = {b.name: b for b in _LOSSES}


def get(spec: str | Bregman) -> Bregman:
    """Returns a Bregman loss by name: "lsif", "lr" or "ukl"; a loss unchanged."""
    if isinstance(spec, Bregman):
        return spec
    check_name("Bregman loss", spec, REGISTRY)
    return REGISTRY[spec]


def loss(
    bregman: str | Bregman, out_real: Array, out_flowed: Array, *, weights: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """Estimates the Bregman divergence from batches of data and of flowed samples (eq. 2).

    Args:
      bregman: the loss, or its name.
      out_real: network outputs on data, [N], which are converted to at least float32.
      out_flowed: network outputs on flowed samples, [M].
      weights: weights of the data, [N], not negative.

    Returns:
      The scalar loss, and scalar metrics: "loss", and the means over data and over flowed samples
      of the output ("output_real", "output_flowed") and of the density ratio ("ratio_real",
      "ratio_flowed"), with log-ratios capped at 60. For the true ratio, `E_p[r] = 1`.
    """
    bregman = get(bregman)
    out_real, out_flowed = at_least_float32(out_real), at_least_float32(out_flowed)
    on_real = jnp.average(bregman.real_term(out_real), weights=weights)
    value = on_real + jnp.mean(bregman.flowed_term(out_flowed))

    def to_ratio(output: Array) -> Array:
        is_log = bregman.output == "log_ratio"
        return jnp.exp(jnp.minimum(output, _MAX_LOG_RATIO)) if is_log else output

    metrics = {
        "loss": value,
        "output_real": jnp.average(out_real, weights=weights),
        "output_flowed": jnp.mean(out_flowed),
        "ratio_real": jnp.average(to_ratio(out_real), weights=weights),
        "ratio_flowed": jnp.mean(to_ratio(out_flowed)),
    }
    return value, metrics

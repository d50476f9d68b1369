"""f-divergences and the first variation that drives the flow.

A divergence here is `D_f(q || p) = ∫ p f(q/p) dx` with a convex generator `f` (eq. 4 of the paper).
The drift of its Langevin flow is `-∇ f'(r(x))` with the density ratio `r = q/p` (eq. 3 and 5).
Constants in `f'` have no gradient and are dropped from the potentials.

Reference: Heng, Ansari and Soh, arXiv 2303.03714, sections 2 and 3.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from fdrl_jax._arrays import evaluate
from fdrl_jax._checks import check_name

__all__ = ["KL", "REGISTRY", "REVERSE_KL", "FDivergence", "alpha", "first_variation", "get"]
__dir__ = __all__.copy

Array = jax.Array
Output = Literal["ratio", "log_ratio"]
OUTPUTS = get_args(Output)


class FDivergence(NamedTuple):
    """An f-divergence as a record of pure, element-wise functions.

    Attributes:
      name: the name under which `get` finds it.
      f: the generator, a function of the ratio `r > 0`.
      potential_from_log_ratio: `f'(exp(log r))` up to a constant, numerically stable for large
        `|log r|` where the divergence allows it.
      potential_from_ratio: `f'(r)` up to a constant, for unconstrained estimators of the ratio
        itself; `None` if it is not defined for every real `r`.
    """

    name: str
    f: Callable[[Array], Array]
    potential_from_log_ratio: Callable[[Array], Array]
    potential_from_ratio: Callable[[Array], Array] | None = None


# The name, `f(r)`, `f'` of the log ratio and, where it is defined, `f'` of an unconstrained ratio.
KL = FDivergence("kl", lambda r: xlogy(r, r), lambda log_r: log_r)
REVERSE_KL = FDivergence("reverse_kl", lambda r: -jnp.log(r), lambda log_r: -jnp.exp(-log_r))
_DIVERGENCES = (
    FDivergence(
        "pearson", lambda r: (r - 1.0) ** 2, lambda log_r: 2.0 * jnp.exp(log_r), lambda r: 2.0 * r
    ),
    KL,
    FDivergence(
        "js",
        lambda r: xlogy(r, r) - (r + 1.0) * jnp.log((r + 1.0) / 2.0),
        jax.nn.log_sigmoid,  # log(2r / (r + 1)) = log 2 + log sigmoid(log r).
    ),
    FDivergence(
        "logd",
        lambda r: (r + 1.0) * jnp.log(r + 1.0) - 2.0 * jnp.log(2.0),
        lambda log_r: -jax.nn.log_sigmoid(-log_r),  # log(r + 1) = -log sigmoid(-log r).
    ),
    REVERSE_KL,
    FDivergence(
        "hellinger", lambda r: (jnp.sqrt(r) - 1.0) ** 2, lambda log_r: -jnp.exp(-0.5 * log_r)
    ),
)
REGISTRY = {d.name: d for d in _DIVERGENCES}

_SMALL_EXPONENT = 0.01  # Below it, `r^b - 1` loses more than two digits for r near 1.
_ALPHA = re.compile(r"alpha\(\s*(?P<order>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)\s*\)")


def alpha(order: float) -> FDivergence:
    """Returns the alpha-divergence of the given order.

    `f(r) = (r^a - a r + a - 1) / (a (a - 1))`, so `f'(r) = (r^(a-1) - 1) / (a - 1)`. Orders 1 and 0
    are the limits KL and reverse KL; order 2 is half of Pearson; 1/2 is twice squared Hellinger.

    Reference: Cichocki and Amari, "Families of Alpha- Beta- and Gamma-Divergences", Entropy 2010.
    """
    a = float(order)
    if not abs(a) < float("inf"):
        raise ValueError(f"the order of an alpha-divergence must be finite, got {order!r}")
    # `exp` without the constant, because for small r the subtraction of 1 would cancel all digits;
    # near order 1 it is the constant, 1 / (a - 1), that would.
    power = jnp.expm1 if abs(a - 1.0) < _SMALL_EXPONENT else jnp.exp
    short = f"{a:g}"  # Six digits are enough for a short name if they are all digits of the order.
    name = f"alpha({short if float(short) == a else repr(a)})"
    if a in (0.0, 1.0):
        return (KL if a else REVERSE_KL)._replace(name=name)
    return FDivergence(
        name=name,
        f=lambda r: _alpha_generator(r, a),
        potential_from_log_ratio=lambda log_r: power((a - 1.0) * log_r) / (a - 1.0),
        potential_from_ratio=(lambda r: r) if a == 2.0 else None,
    )


def _alpha_generator(r: Array, a: float) -> Array:
    """Returns `f(r)` of `alpha`, also for orders near 0 and 1."""
    if a < 0.5:
        return ((r - 1.0) - _deformed_log(r, a)) / (1.0 - a)
    # The product tends to 0 with r.
    product = jnp.where(r > 0.0, r * _deformed_log(jnp.where(r > 0.0, r, 1.0), a - 1.0), 0.0)
    return (product - (r - 1.0)) / a


def _deformed_log(r: Array, exponent: float) -> Array:
    """Returns `(r^b - 1) / b`, which tends to `log r` as the exponent `b` tends to 0."""
    if abs(exponent) < _SMALL_EXPONENT:
        return jnp.expm1(exponent * jnp.log(r)) / exponent
    return (r**exponent - 1.0) / exponent


def get(spec: str | FDivergence) -> FDivergence:
    """Returns a divergence by name, such as "kl" or "alpha(0.5)"; a divergence unchanged."""
    if isinstance(spec, FDivergence):
        return spec
    if match := _ALPHA.fullmatch(str(spec)):
        return _named_alpha(float(match["order"]))
    check_name("divergence", spec, REGISTRY, others=", alpha(ORDER)")
    return REGISTRY[spec]


# Equal names are the same object, so what was compiled for one can be reused for the other.
_named_alpha = functools.cache(alpha)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["estimator_fn"], meta_fields=["f_prime"]
)
@dataclasses.dataclass(frozen=True)
class FirstVariation:
    """The potential `x -> f'(r(x))`, a pytree with the arrays of its estimator, `x -> [B]`."""

    estimator_fn: Callable[[Array], Array]
    f_prime: Callable[[Array], Array]  # The estimator's output -> `f'(r)`, up to a constant.

    def __call__(self, x: Array) -> Array:
        """Returns the potential of each example, [B]."""
        return self.f_prime(evaluate(self.estimator_fn, x))


def first_variation(
    estimator_fn: Callable[[Array], Array], divergence: str | FDivergence, *, output: Output
) -> FirstVariation:
    """Returns the potential `x -> f'(r(x))`, whose negative gradient drives the flow (eq. 5).

    Args:
      estimator_fn: any function `x [B, ...] -> [B]` that estimates the density ratio `q/p`.
      divergence: the f-divergence, or a name for `get`.
      output: what the estimator returns: "log_ratio" for `log r`, or "ratio" for an unconstrained
        `r` (LSIF). There is no default, because samples diverge without an error if one is taken
        for the other. `FDRL.potential` knows it from the loss.

    Returns:
      The potential, `x [B, ...] -> [B]`, up to a constant, in at least float32: a pytree if the
      estimator is one (`jax.tree_util.Partial`, or an NNX module).

    Raises:
      ValueError: for an unknown output, or a ratio where the divergence needs a positive one.
    """
    check_name("output", output, OUTPUTS)
    divergence = get(divergence)
    if output == "log_ratio":
        return FirstVariation(estimator_fn, divergence.potential_from_log_ratio)
    if divergence.potential_from_ratio is None:
        raise ValueError(
            f"divergence {divergence.name!r} needs a positive ratio, but output 'ratio', which the "
            "loss 'lsif' trains, is unconstrained: use output 'log_ratio' (the losses 'lr' and "
            "'ukl'), or the divergence 'pearson'"
        )
    return FirstVariation(estimator_fn, divergence.potential_from_ratio)

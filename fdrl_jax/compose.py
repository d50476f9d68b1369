"""Conditions a density ratio on a class.

A flow that decreases `log r` moves towards the denominator of `r`, so adding `-w log p` to `log r`
multiplies the target of the flow by `p^w`.

Reference: Heng, Ansari and Soh, arXiv 2303.03714, section 3.4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdrl_jax._arrays import evaluate
from fdrl_jax._checks import check_name, logits_of, one_or_nan
from fdrl_jax.divergences import OUTPUTS, Output

__all__ = ["condition"]
__dir__ = __all__.copy

Array = jax.Array
Estimator = Callable[[Array], Array]


def condition(
    estimator: Estimator,
    classifier: Callable[[Array], Array],
    label: int | Array,
    weight: float = 0.1,
    *,
    output: Output,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Estimator:
    """Conditions a density-ratio estimator on a class: `r(x) (p(y | x) / p(y))^-φ` (eq. 12).

    The constant `p(y)^φ`, for classes of equal shares, has no effect under KL. Under other
    divergences it ensures that an uninformative classifier does not change the flow.

    Under KL the result is the flow of the paper (eq. 30) with `η` in place of its `2 η`:
    `x - η ∇(log r(x) - φ log p(y | x)) + ν ξ`. The exact conditional is `φ = 1`; learnt ratios and
    classifiers work better with a smaller weight. The flow ascends the log-probability of the
    classifier, so use one that is robust to adversarial perturbations.

    Args:
      estimator: `x [B, ...] -> [B]`.
      classifier: `x [B, ...] -> logits [B, C]`, each row depending only on its own example.
      label: the class, or one class per example, [B]; integers from 0 to C - 1. A traced label out
        of range gives NaN.
      weight: `φ`; 0 is unconditional.
      output: what estimator and result return: "log_ratio" for `log r`, or "ratio" for an
        unconstrained `r` (LSIF). Where such an `r` is negative, the factor pushes samples away from
        the class. There is no default; `FDRL.output` is that of a trained network.
      input_range: of the classifier, such as (0, 1), to which [-1, 1] is mapped without clipping.

    Returns:
      An estimator `x [B, ...] -> [B]` for `first_variation` with the same output.

    Raises:
      ValueError: for an unknown output, and when called, for other shapes or a label out of range.
    """
    check_name("output", output, OUTPUTS)
    low, high = input_range

    def log_p(x: Array) -> Array:
        logits = logits_of(classifier, low + (high - low) * (x + 1.0) / 2.0)
        num_classes = logits.shape[-1]
        valid = one_or_nan(label, num_classes)
        chosen = jax.nn.one_hot(jnp.broadcast_to(label, logits.shape[:1]), num_classes, dtype=bool)

        def of_class(logits: Array) -> Array:
            kept = jnp.where(chosen, logits, -jnp.inf)
            value: Array = jax.nn.logsumexp(kept, -1) - jax.nn.logsumexp(logits, -1)
            return valid * value

        return of_class(logits) - of_class(jnp.zeros(num_classes))

    def conditioned(x: Array) -> Array:
        value, log_probability = evaluate(estimator, x), evaluate(log_p, x)
        if value.shape != log_probability.shape:
            raise ValueError(
                f"an estimator must return one number per example, {log_probability.shape}, got "
                f"{value.shape}; from [B, 1], drop the last axis: `[:, 0]`"
            )
        if output == "log_ratio":
            return value - weight * log_probability
        return value * jnp.exp(-weight * log_probability)

    return conditioned

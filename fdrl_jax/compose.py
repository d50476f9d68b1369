"""Compositions of density ratios: by class, and by several attributes.

Each function here maps functions to a function: pass it an estimator or a classifier, and pass the
result to `first_variation` or `flow` like any other ratio or potential.
Ratios are combined in logarithms. A flow that decreases `log r` moves towards the denominator of
`r`, so adding `-w log p` to `log r` multiplies the target of the flow by `p^w`.

References: Heng, Ansari and Soh, arXiv 2303.03714, section 3.4 (conditional generation); Du, Li and
Mordatch, "Compositional Visual Generation with Energy Based Models", 2020 (products, negation).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fdrl_jax._arrays import evaluate
from fdrl_jax._checks import logits_of, nearest, one_or_nan
from fdrl_jax.divergences import Output, check_output

__all__ = ["condition", "log_probability", "product"]
__dir__ = __all__.copy

Array = jax.Array
Estimator = Callable[[Array], Array]
Classifier = Callable[[Array], Array]


def log_probability(
    classifier: Classifier,
    label: int | Array,
    *,
    negate: bool = False,
    input_range: tuple[float, float] = (-1.0, 1.0),
    class_probabilities: str | Array | Sequence[float] | None = None,
) -> Estimator:
    """Returns `x -> log p(y | x)`, or `x -> log(1 - p(y | x))`, from a classifier's logits.

    Args:
      classifier: `images [B, ...] -> logits [B, C]`, each row depending only on its own example.
      label: the class, or one class per example, [B]; integers from 0 to C - 1.
      negate: use the probability of all other classes.
      input_range: input range of the classifier, such as (0, 1). The range [-1, 1] of `x` is mapped
        to it linearly, without clipping.
      class_probabilities: the probabilities `p(y)` in the classifier's training data, [C], all
        positive, or "uniform". If given, the result is relative to them: `log p(y | x) - log p(y)`.

    Returns:
      The function `x [B, ...] -> [B]`. It raises ValueError for logits that are not [B, C], for a
      known label that is out of range (a traced one gives NaN), and unless there is one positive
      probability per class.
    """
    low, high = input_range
    if isinstance(class_probabilities, str) and class_probabilities != "uniform":
        hint = nearest(class_probabilities, ["uniform"])
        raise ValueError(
            "class_probabilities must be 'uniform' or one number per class, "
            f"got {class_probabilities!r}{hint}"
        )

    def log_p(x: Array) -> Array:
        logits = logits_of(classifier, low + (high - low) * (x + 1.0) / 2.0)
        num_classes = logits.shape[-1]
        valid = one_or_nan(label, num_classes)
        chosen = jax.nn.one_hot(jnp.broadcast_to(label, logits.shape[:1]), num_classes, dtype=bool)

        def of_class(logits: Array) -> Array:
            kept = jnp.where(chosen ^ negate, logits, -jnp.inf)
            value: Array = jax.nn.logsumexp(kept, -1) - jax.nn.logsumexp(logits, -1)
            return valid * value

        if class_probabilities is None:
            return of_class(logits)
        if isinstance(class_probabilities, str):
            return of_class(logits) - of_class(jnp.zeros(num_classes))
        probabilities = jnp.asarray(class_probabilities, jnp.float32)
        if probabilities.shape != (num_classes,):
            raise ValueError(
                f"class_probabilities must be one number per class, [{num_classes}], got shape "
                f"{probabilities.shape}"
            )
        traced = any(isinstance(p, jax.core.Tracer) for p in jax.tree.leaves(class_probabilities))
        if not (traced or np.all(np.asarray(class_probabilities) > 0.0)):
            raise ValueError(f"class_probabilities must be positive, got {class_probabilities}")
        return of_class(logits) - of_class(jnp.log(probabilities))

    return log_p


def product(log_ratios: Sequence[Estimator], weights: Sequence[float] | None = None) -> Estimator:
    """Returns the logarithm of a product of powers, `x -> Σ w_i log r_i(x)`.

    If all `r_i = q/p_i` share one `q`, the target of the flow is `q Π (p_i/q)^(w_i)`, which is the
    product of the `p_i` wherever `q` is flat. A negative weight moves samples away from `p_i`.
    Log-probabilities enter as `-log p(y | x)`, so a negative weight seeks a class and a positive
    weight avoids it: `product([log_r, log_p(smile), log_p(hat)], [1, -0.1, 0.1])` gives smiles
    without hats.

    Args:
      log_ratios: functions `x [B, ...] -> [B]`. Other shapes, which would broadcast, are an error.
      weights: one number per function; 1 each by default.

    Returns:
      The function `x [B, ...] -> [B]`, a pytree with the arrays of the functions.
    """
    ws = [1.0] * len(log_ratios) if weights is None else list(weights)
    if not log_ratios or len(ws) != len(log_ratios):
        raise ValueError(
            f"expected one weight per function, got {len(ws)} for {len(log_ratios)} functions"
        )

    combined: Estimator = Partial(_weighted_sum, list(log_ratios), ws)  # type: ignore[no-untyped-call]
    return combined


def condition(
    estimator: Estimator,
    classifier: Classifier,
    label: int | Array,
    weight: float = 0.1,
    *,
    output: Output,
    negate: bool = False,
    input_range: tuple[float, float] = (-1.0, 1.0),
    class_probabilities: Array | Sequence[float] | None = None,
) -> Estimator:
    """Conditions a density-ratio estimator on a class: `r(x) (p(y | x) / p(y))^-φ` (eq. 12).

    The factor `p(y)^φ` has no effect under KL. Under other divergences it ensures that an
    uninformative classifier does not change the flow.

    Under KL the result is the flow of the paper (eq. 30) with `η` in place of its `2 η`:
    `x - η ∇(log r(x) - φ log p(y | x)) + ν ξ`. The exact conditional is `φ = 1`; learnt ratios and
    classifiers work better with a smaller weight. Use a classifier that is robust to adversarial
    perturbations. The flow ascends its log-probability, and for an ordinary classifier this leads
    to images that fool only this classifier.

    Args:
      estimator: `x [B, ...] -> [B]`.
      classifier: as for `log_probability`.
      label: as for `log_probability`.
      weight: `φ`; 0 is unconditional.
      output: what the estimator and the result return: "log_ratio" for `log r`, or "ratio" for an
        unconstrained `r` (LSIF), which is multiplied by the same factor. Where such an `r` is
        negative, the factor pushes samples away from the class, so prefer a loss that learns
        `log r`. There is no default; `FDRL.output` is that of a trained network.
      negate: condition on any class except this one.
      input_range: as for `log_probability`.
      class_probabilities: `p(y)` in the classifier's training data, [C]; uniform by default.

    Returns:
      An estimator `x [B, ...] -> [B]` for `first_variation` with the same output.

    Raises:
      ValueError: for an unknown output.
    """
    check_output(output)
    log_p = log_probability(
        classifier,
        label,
        negate=negate,
        input_range=input_range,
        class_probabilities="uniform" if class_probabilities is None else class_probabilities,
    )
    if output == "log_ratio":
        return product([estimator, log_p], [1.0, -weight])

    def ratio(x: Array) -> Array:
        values = [evaluate(estimator, x), log_p(x)]
        _check_shapes(values)
        return values[0] * jnp.exp(-weight * values[1])

    return ratio


def _weighted_sum(functions: Sequence[Estimator], weights: Sequence[float], x: Array) -> Array:
    values = [evaluate(function, x) for function in functions]
    _check_shapes(values)
    terms = [w * value for w, value in zip(weights, values, strict=True)]
    return sum(terms[1:], start=terms[0])


def _check_shapes(values: Sequence[Array]) -> None:
    shapes = [value.shape for value in values]
    if len(set(shapes)) > 1:
        got = ", ".join(map(str, shapes))
        raise ValueError(
            "functions that are combined must all return one number per example, [B], got shapes "
            f"{got}; from [B, 1], drop the last axis: `[:, 0]`"
        )

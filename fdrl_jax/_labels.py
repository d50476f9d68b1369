"""Checks of class labels, and of the logits of a classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdrl_jax._precision import at_least_float32

Array = jax.Array


def one_or_nan(label: ArrayLike, num_classes: int) -> Array | float:
    """Checks labels, and returns the factor of a result that depends on them.

    Args:
      label: a label, or labels, of any shape.
      num_classes: `C`; labels are integers from 0 to C - 1.

    Returns:
      1 if all labels are valid. For traced labels, whose values are unknown, an array of their
      shape with 1 for a valid label and NaN for another one. As a factor of a result, it makes also
      the gradient NaN.

    Raises:
      ValueError: for labels that are not integers, or are known to be out of range.
    """
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(f"label must be an integer, got {label}")
    if isinstance(label, jax.core.Tracer):
        return jnp.where((label >= 0) & (label < num_classes), 1.0, jnp.nan)
    if not np.all((np.asarray(label) >= 0) & (np.asarray(label) < num_classes)):
        raise ValueError(f"label must be from 0 to {num_classes - 1}, got {label}")
    return 1.0


def logits_of(classifier: Callable[[Array], Array], x: Array) -> Array:
    """Returns the logits [B, C] of `x` [B, ...], converted to at least float32.

    Raises:
      ValueError: for logits of another shape.
    """
    logits = at_least_float32(classifier(x))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "a classifier must return logits [B, C] of C >= 2 classes, two columns for two classes;"
            f" got {logits.shape}. From one logit z of class 1: jnp.stack([0 * z, z], axis=-1)"
        )
    return logits

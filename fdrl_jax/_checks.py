"""Checks of what a user gives, and of the logits of a classifier."""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.linalg import subspace_angles
from scipy.stats import rankdata

from fdrl_jax._arrays import at_least_float32

Array = jax.Array


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest allowed name, or "" if none is similar."""
    matches = difflib.get_close_matches(str(name).lower(), list(allowed), n=1, cutoff=0.55)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_name(kind: str, name: str, allowed: Iterable[str], others: str = "") -> None:
    """Raises a ValueError unless the name of a kind of thing is one of the allowed ones."""
    if name not in (names := list(allowed)):
        raise ValueError(
            f"unknown {kind} {name!r}; allowed: {', '.join(names)}{others}{nearest(name, names)}"
        )


def check_count(name: str, value: object, least: int = 0) -> None:
    """Raises a ValueError unless a number of things is a static whole number, at least `least`."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} must be a static Python int, got a JAX array or traced value, {value}; "
            "under jax.jit, name it in static_argnames"
        )
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_number(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raises a TypeError or ValueError unless a known number is finite and at least (above) 0."""
    if isinstance(value, jax.core.Tracer):
        return
    numbers = (int, float, np.integer, np.floating, np.ndarray, jax.Array)
    if isinstance(value, bool) or not isinstance(value, numbers):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value}")
    value = np.asarray(value)  # JAX would trace a comparison of a known array under jit.
    if value.ndim:
        raise ValueError(f"{name} must be a scalar, got an array of shape {value.shape}")
    if not (0 < value < math.inf if above_zero else 0 <= value < math.inf):
        bound = "above 0" if above_zero else ">= 0"
        raise ValueError(f"{name} must be {bound} and finite, got {value}")


def refuse_frame(name: str, values: Any) -> None:
    """Refuses data frames: another order of their columns would have the same shape."""
    if hasattr(values, "columns"):
        raise ValueError(
            f"{name} must be an array; fdrl_jax.ratio.estimator.RatioEstimator takes data frames"
        )


def real_examples(name: str, values: Any, least: int) -> np.ndarray:
    """Returns finite values in floating point, [N, ...]; numbers per example become [N, 1]."""
    refuse_frame(name, values)
    if np.ma.is_masked(values):  # NumPy would use what the mask hides.
        raise ValueError(f"{name} has masked values; remove or impute them")
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} must be an array; convert a sparse matrix with toarray()")
    array = np.asarray(values)
    try:
        if array.dtype.kind in "USMmc":
            raise ValueError(f"got {array.dtype}")
        array = array.astype(np.float64 if array.dtype == object else array.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real numbers: {error}") from error
    array = array.astype(np.promote_types(array.dtype, np.float32))
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim == 0 or len(array) < least or array[0].size == 0:
        raise ValueError(
            f"{name} must have at least {least} examples, [N, ...], got shape {np.shape(values)}"
        )
    good = (np.abs(array) <= 1e30).reshape(len(array), -1).all(axis=1)
    if not good.all():
        raise ValueError(
            f"{name} has values that are not finite (NaN or infinite) or above 1e30 (their squares "
            f"overflow) in {np.sum(~good)} of {len(array)} examples; remove, impute or rescale them"
        )
    return array


def refuse_functions(x: np.ndarray, y: np.ndarray) -> None:
    """Raises a ValueError if combinations of columns are equal in x, [N, D], and y, or monotone."""
    ranks = rankdata(x, axis=0), rankdata(y, axis=0)
    # The angle that is due to float32's rounding is smaller.
    if min(_smallest_angle(x, y), _smallest_angle(*ranks)) < 1e-6:
        raise ValueError(
            "a column or linear combination of columns is the same in x and y, or a monotone map, "
            "so their mutual information is infinite; remove it, or add the noise of measurement"
        )


def _smallest_angle(x: np.ndarray, y: np.ndarray) -> Any:
    """Returns the smallest angle of combinations of columns without repeated values.

    Copies of columns with few values have a finite mutual information.
    """
    bases = []
    for values in (x, y):
        columns = [c - c.mean() for c in values.astype(float).T if len(np.unique(c)) > 0.9 * len(c)]
        bases.append(np.reshape([c / np.abs(c).max() for c in columns], (-1, len(values))).T)
    sizes = [part.shape[1] for part in bases]
    return subspace_angles(*bases).min() if min(sizes) > 0 and sum(sizes) < len(x) else np.inf


def count_classes(labels: Any, num: int) -> int:
    """Returns C for labels, [num]; raises a ValueError unless each one from 0 to C - 1 occurs."""
    labels = np.asarray(labels)
    is_whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (num,) or not is_whole or labels.min(initial=0) < 0:
        raise ValueError(
            f"labels must be one integer >= 0 per example, ({num},), got {labels.dtype} "
            f"{labels.shape}: {labels.ravel()[:3]}"
        )
    found = np.unique(labels)
    if missing := [label for label, other in enumerate(found) if label != other]:
        raise ValueError(f"label {missing[0]} of {found[-1] + 1} has no examples")
    return len(found)


def check_not_bytes(name: str, x: Any) -> None:
    """Raises a ValueError for bytes, which are pixels that were not mapped to [-1, 1]."""
    if getattr(x, "dtype", None) in (np.uint8, np.int8):
        check_images(name, x)


def check_images(name: str, x: Any, largest: float = math.inf) -> None:
    """Raises a ValueError for integers, and for images that are known to be outside of [-1, 1].

    `largest` is the absolute value that is allowed, as noise may be outside of this range.
    """
    is_floating = jnp.issubdtype(x.dtype, jnp.floating)
    is_known = is_floating and not isinstance(x, jax.core.Tracer)
    if not is_floating or (is_known and np.max(np.abs(x), initial=0.0) > largest):
        got = f"values from {np.min(x):.3g} to {np.max(x):.3g}" if is_known else x.dtype
        raise ValueError(
            f"{name} must be floating-point numbers in [-1, 1], got {got}: x / 127.5 - 1 maps "
            "bytes to it"
        )


def one_or_nan(label: ArrayLike, num_classes: int) -> Array | float:
    """Returns 1 for labels from 0 to C - 1, and for each traced label 1, or NaN if it is not.

    As a factor of a result, it makes also the gradient NaN. Other labels are a ValueError.
    """
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise ValueError(f"label must be an integer, got {label}")
    if isinstance(label, jax.core.Tracer):
        return jnp.where((label >= 0) & (label < num_classes), 1.0, jnp.nan)
    if not np.all((np.asarray(label) >= 0) & (np.asarray(label) < num_classes)):
        raise ValueError(f"label must be from 0 to {num_classes - 1}, got {label}")
    return 1.0


def logits_of(classifier: Callable[[Array], Array], x: Array) -> Array:
    """Returns the logits of `x` [B, ...], in at least float32; a ValueError unless [B, C]."""
    logits = at_least_float32(classifier(x))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            "a classifier must return logits [B, C] of C >= 2 classes, two columns for two classes;"
            f" got {logits.shape}. From one logit z of class 1: jnp.stack([0 * z, z], axis=-1)"
        )
    return logits

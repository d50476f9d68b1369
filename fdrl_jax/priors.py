"""Priors: the source distributions `q'` where the flow starts (method section 6 of the paper).

A prior is a pair of arrays and a pure function, apart from each other so that large arrays (a
covariance factor) travel into compiled functions as arguments and not as constants.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Batch = dict[str, Array]


class Prior(NamedTuple):
    """A source distribution.

    Attributes:
      params: a pytree of arrays, possibly empty.
      sample: `(params, keys [B], batch) -> x_0 [B, ...]`. One typed key an example; the batch is
        what the data source gave for the step, read by `batch` priors alone.
    """

    params: Any
    sample: Callable[[Any, Array, Batch], Array]


def normal(event_shape: Sequence[int], scale: float = 1.0) -> Prior:
    """Returns `N(0, scale² I)`."""
    if not scale > 0:
        raise ValueError(f"the scale of a normal prior must be positive, got {scale}")
    shape = tuple(event_shape)
    return Prior((), lambda _, keys, batch: scale * _per_example(jax.random.normal, keys, shape))


def uniform(event_shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Prior:
    """Returns the uniform distribution on a box: the uniform prior (UP) on `[-1, 1]` by default."""
    if not low < high:
        raise ValueError(f"a uniform prior needs low < high, got {low} and {high}")
    shape = tuple(event_shape)

    def sample(_: Any, keys: Array, batch: Batch) -> Array:
        return low + (high - low) * _per_example(jax.random.uniform, keys, shape)

    return Prior((), sample)


def gaussian(
    mean: np.ndarray | Array,
    factor: np.ndarray | Array,
    *,
    clip: tuple[float, float] | None = (-1.0, 1.0),
) -> Prior:
    """Returns the data-dependent prior (DDP, eq. 8): `N(μ, F Fᵀ)`, clipped.

    Args:
      mean: `μ`, of the event's shape.
      factor: `F`, [D, D] with D the event's size: for example `covariance_factor` of `Moments`.
      clip: the range that samples are clipped to, or `None`.

    Raises:
      ValueError: if the factor does not fit the mean.
    """
    shape, size = np.shape(mean), int(np.size(mean))
    if np.shape(factor) != (size, size):
        raise ValueError(
            f"a mean of {size} entries needs a factor {(size, size)}, got {np.shape(factor)}"
        )
    params = {
        "mean": jnp.asarray(mean, jnp.float32).reshape(size),
        "factor": jnp.asarray(factor, jnp.float32),
    }

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        noise = _per_example(jax.random.normal, keys, (size,))
        x = params["mean"] + noise @ params["factor"].T
        return (x if clip is None else jnp.clip(x, *clip)).reshape(-1, *shape)

    return Prior(params, sample)


def batch(field: str = "source") -> Prior:
    """Returns the prior that takes `x_0` from the batch itself: image-to-image translation."""
    return Prior((), lambda _, keys, batch: batch[field])


class Moments(NamedTuple):
    """Count, mean and scatter matrix `Σ (x - μ)(x - μ)ᵀ` of examples seen so far, in float64."""

    num_examples: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The biased covariance (1/N), [D, D]."""
        return self.scatter / self.num_examples


def moments(batches: Iterable[np.ndarray]) -> Moments:
    """Computes mean and covariance in one pass over batches, in float64 on the host.

    Batches are merged by the update of Chan, Golub and LeVeque (1979), which does not cancel.

    Args:
      batches: arrays [B, ...] of un-augmented examples in [-1, 1].

    Raises:
      ValueError: if there is no example.
    """
    total: Moments | None = None
    for examples in batches:
        if not len(examples):
            continue
        x = np.asarray(examples, np.float64).reshape(len(examples), -1)
        mean = x.mean(axis=0)
        centred = x - mean
        part = Moments(len(x), mean, centred.T @ centred)
        total = part if total is None else _merge(total, part)
    if total is None:
        raise ValueError("a data-dependent prior needs at least one example, got none")
    return total


def covariance_factor(covariance: np.ndarray, jitter: float = 1e-4) -> np.ndarray:
    """Returns the Cholesky factor of `Σ + jitter I` (eq. 8), float32, computed in float64.

    Raises:
      ValueError: if the sum is not positive definite.
    """
    try:
        regularised = covariance + jitter * np.eye(len(covariance))
        return np.linalg.cholesky(regularised).astype(np.float32)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the covariance plus {jitter:g} I is not positive definite; raise the jitter"
        ) from None


def _merge(a: Moments, b: Moments) -> Moments:
    count = a.num_examples + b.num_examples
    delta = b.mean - a.mean
    scatter = (
        a.scatter + b.scatter + np.outer(delta, delta) * (a.num_examples * b.num_examples / count)
    )
    return Moments(count, a.mean + delta * (b.num_examples / count), scatter)


def _per_example(draw: Callable[..., Array], keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: draw(key, shape))(keys)

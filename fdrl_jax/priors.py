"""Priors: the source distributions `q'` where the flow starts.

A prior consists of arrays and a pure function. They are separate so that large arrays (a covariance
factor) are passed to compiled functions as arguments and do not become constants.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdrl_jax._covariance import Moments, covariance_factor, low_rank, low_rank_factor, moments

__all__ = [
    "Moments",
    "Prior",
    "batch",
    "covariance_factor",
    "gaussian",
    "low_rank",
    "low_rank_factor",
    "moments",
    "normal",
    "uniform",
]

Array = jax.Array
Batch = dict[str, Array]


class Prior(NamedTuple):
    """A source distribution.

    Attributes:
      params: a pytree of arrays, possibly empty.
      sample: `(params, keys [B], batch) -> x_0 [B, ...]`, with one typed key per example. The batch
        is the one that the data source returned for the step; only the prior `batch` reads it.
    """

    params: Any
    sample: Callable[[Any, Array, Batch], Array]


def normal(event_shape: Sequence[int], scale: float = 1.0) -> Prior:
    """Returns `N(0, scale² I)`.

    Args:
      event_shape: shape of one example.
      scale: standard deviation.

    Raises:
      ValueError: if the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"the scale of a normal prior must be positive, got {scale}")
    shape = tuple(event_shape)
    return Prior((), lambda _, keys, batch: scale * _per_example(jax.random.normal, keys, shape))


def uniform(event_shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Prior:
    """Returns the uniform distribution on a box, by default the uniform prior (UP) on `[-1, 1]`.

    Args:
      event_shape: shape of one example.
      low: lower bound of every entry.
      high: upper bound of every entry.

    Raises:
      ValueError: unless `low < high`.
    """
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
    remainder_scale: float | np.ndarray | Array = 0.0,
    clip: tuple[float, float] | None = None,
    axis_name: str | None = None,
) -> Prior:
    """Returns the data-dependent prior (DDP, eq. 8): `N(μ, F Fᵀ + C diag(s²) Cᵀ)`.

    Args:
      mean: `μ`, of the event's shape.
      factor: `F`, [D, k] with D the event's size, from `covariance_factor` (k = D) or
        `low_rank_factor`.
      remainder_scale: `s`, the standard deviations of what a low-rank factor leaves out: one per
        coefficient of the orthonormal discrete cosine transform, of the event's shape, or one
        number for all, which is white noise (`s² I`).
      clip: the range to which samples are clipped, if any; (-1, 1) for images, as in the authors'
        code.
      axis_name: the mapped axis of replicas. On this axis, `params["factor"]` may also be the rows
        of one replica, [D/n, k], from `parallel.distribute`.

    Raises:
      ValueError: if factor or remainder do not fit the mean.
    """
    shape, size = np.shape(mean), int(np.size(mean))
    if np.ndim(factor) != 2 or np.shape(factor)[0] != size:
        raise ValueError(
            f"a mean of {size} entries needs a factor of {size} rows, got {np.shape(factor)}"
        )
    rank = np.shape(factor)[1]
    params = {"mean": _float32(mean).reshape(size), "factor": _float32(factor)}
    is_white = np.ndim(remainder_scale) == 0
    if not is_white:
        if np.shape(remainder_scale) != shape:
            raise ValueError(
                f"remainder_scale must be a number or an array of shape {shape}, as the mean, got "
                f"{np.shape(remainder_scale)}"
            )
        params["remainder_scale"] = np.asarray(remainder_scale, np.float32)

    def correlated(noise: Array, factor: Array) -> Array:
        if len(factor) == size:
            return noise @ factor.T
        # Each replica multiplies the noise of all examples by its rows. This costs it the same
        # products as the whole factor would for its own examples.
        of_all = lax.all_gather(noise, axis_name, tiled=True)
        own: Array = lax.all_to_all(  # type: ignore[no-untyped-call]
            of_all @ factor.T, axis_name, split_axis=0, concat_axis=1, tiled=True
        )
        return own

    def remainder(params: dict[str, Array], keys: Array) -> Array:
        other_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        noise = _per_example(jax.random.normal, other_keys, shape)
        scale: Any = params.get("remainder_scale", remainder_scale)
        scaled: Array = scale * noise
        if is_white:
            return scaled
        smooth: Array = jax.scipy.fft.idctn(scaled, axes=range(1, noise.ndim), norm="ortho")
        return smooth

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        noise = _per_example(jax.random.normal, keys, (rank,))
        x = params["mean"] + correlated(noise, params["factor"])
        x = x.reshape(-1, *shape)
        if not is_white or remainder_scale:
            x = x + remainder(params, keys)
        return x if clip is None else jnp.clip(x, *clip)

    return Prior(params, sample)


def batch(field: str = "source", dequantisation: float = 0.0) -> Prior:
    """Returns the prior that uses images of the batch as `x_0`, for image-to-image translation.

    Args:
      field: name of the images in the batch.
      dequantisation: standard deviation of the Gaussian noise added to these images, as to data.
    """

    def sample(_: Any, keys: Array, batch: Batch) -> Array:
        x = batch[field]
        if not dequantisation:
            return x
        return x + dequantisation * _per_example(jax.random.normal, keys, x.shape[1:])

    return Prior((), sample)


def _float32(array: np.ndarray | Array) -> np.ndarray | Array:
    """Converts an array where it is: one of the host may be too large for a single device."""
    if isinstance(array, jax.Array):
        return array.astype(jnp.float32)
    return np.asarray(array, np.float32)


def _per_example(draw: Callable[..., Array], keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: draw(key, shape, jnp.float32))(keys)

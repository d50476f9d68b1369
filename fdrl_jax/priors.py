"""Priors: the source distributions `q'` where the flow starts.

A prior consists of arrays and a pure function. They are separate so that large arrays (a covariance
factor) are passed to compiled functions as arguments and do not become constants.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdrl_jax import _keys
from fdrl_jax._covariance import Moments, covariance_factor, low_rank, low_rank_factor, moments
from fdrl_jax._labels import logits_of, one_or_nan
from fdrl_jax._mixture import Mixture, clusters, fit_mixture

__all__ = [
    "Mixture",
    "Moments",
    "Prior",
    "batch",
    "class_weights",
    "clusters",
    "covariance_factor",
    "fit_mixture",
    "gaussian",
    "low_rank",
    "low_rank_factor",
    "mixture",
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
        is the one that the data source returned for the step; the priors `batch` and `mixture`
        may read it.
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

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        noise = _per_example(jax.random.normal, keys, (rank,))
        x = params["mean"] + _correlated(noise, params["factor"], size, axis_name, _times_factor)
        x = x.reshape(-1, *shape)
        if is_white and remainder_scale:
            x = x + remainder_scale * _remainder_noise(keys, shape)
        elif not is_white:
            x = x + _smooth(params["remainder_scale"] * _remainder_noise(keys, shape))
        return x if clip is None else jnp.clip(x, *clip)

    return Prior(params, sample)


def mixture(
    fitted: Mixture,
    *,
    clip: tuple[float, float] | None = None,
    axis_name: str | None = None,
) -> Prior:
    """Returns the data-dependent prior as a mixture: `Σ_m w_m N(μ_m, F_m F_mᵀ + C diag(s_m²) Cᵀ)`.

    A single Gaussian is far from data with classes. A mixture is nearer, so the flow has less to
    do, and every cluster of the data has its share of the samples.

    Args:
      fitted: from `fit_mixture`, with the components from `clusters` or the classes of the data.
        The component of a sample is drawn with the weights of the mixture. If these have rows for
        classes, it is drawn with those of its label, `batch["label"]`, [B]. A label that is out of
        range gives NaN.
      clip: as for `gaussian`.
      axis_name: as for `gaussian`.

    Raises:
      ValueError: if the arrays of the mixture do not fit each other.
    """
    num, *lengths = np.shape(fitted.means)
    shape, size = tuple(lengths), math.prod(lengths)
    of_factor, rank = np.shape(fitted.factor), np.shape(fitted.factor)[1] // num
    scales, num_weights = np.shape(fitted.remainder_scale), np.shape(fitted.weights)[-1]
    if of_factor != (size, num * rank) or scales != (num, *shape) or num_weights != num:
        raise ValueError(
            f"{num} means of shape {shape} need as many weights, a factor of {size} rows "
            f"and a multiple of {num} columns, and remainders of the shape of the means, got "
            f"{num_weights}, {of_factor} and {scales}"
        )
    params = {
        "weights": _float32(fitted.weights),
        "mean": _float32(fitted.means).reshape(num, size),
        "factor": _float32(fitted.factor),
        "remainder_scale": _float32(fitted.remainder_scale),
    }

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        logits = jnp.log(params["weights"])
        classes = jnp.shape(logits)[:-1]
        logits = logits[batch["label"]] if classes else logits
        of_choice = _keys.named(keys, "component")
        chosen = jax.vmap(jax.random.categorical, (0, 0 if classes else None))(of_choice, logits)
        noise = (chosen, _per_example(jax.random.normal, keys, (rank,)))
        correlated = _correlated(noise, params["factor"], size, axis_name, _times_components)
        x = params["mean"][chosen] + correlated
        scales = params["remainder_scale"][chosen]
        x = x.reshape(-1, *shape) + _smooth(scales * _remainder_noise(keys, shape))
        if classes:
            valid = one_or_nan(batch["label"], classes[0])
            x = x * jnp.reshape(valid, (-1, *[1] * len(shape)))
        return x if clip is None else jnp.clip(x, *clip)

    return Prior(params, sample)


def class_weights(
    prior: Prior,
    classifier: Callable[[Array], Array],
    key: Array,
    *,
    num_samples: int = 100,
) -> np.ndarray:
    """Returns weights of a mixture for each class, `p(m|y) ∝ w_m p(y|m)`, [C, M].

    A flow that is guided by a classifier should start from samples of the class. With these
    weights in `prior.params["weights"]`, a mixture draws them for the labels of a batch.

    Args:
      prior: a `mixture` without classes.
      classifier: `x [B, ...] -> logits [B, C]`.
      key: a JAX key.
      num_samples: of each component, over which `p(y|m)` is the mean of `p(y|x)`.

    Raises:
      ValueError: for another prior, if the mixture has weights for each class already, or for
        logits that are not [B, C].
    """
    if "weights" not in prior.params:
        raise ValueError("class_weights needs a mixture, from priors.mixture")
    weights = np.asarray(prior.params["weights"], np.float64)
    if weights.ndim != 1:
        raise ValueError(f"the mixture has weights for each class already, {weights.shape}")
    num = len(weights)
    of_component = {**prior.params, "weights": np.eye(num, dtype=np.float32)}

    @jax.jit
    def probabilities(params: Any, component: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, component), num_samples)
        x = prior.sample(params, keys, {"label": jnp.full(num_samples, component)})
        return jax.nn.softmax(logits_of(classifier, x), axis=-1).mean(axis=0)

    found = [probabilities(of_component, component) for component in range(num)]
    # A class that the classifier finds nowhere has the weights of the mixture, and not NaN.
    tiny = np.finfo(np.float32).tiny
    joint = weights[:, None] * np.maximum(np.asarray(found, np.float64), tiny)
    of_classes: np.ndarray = (joint / joint.sum(axis=0)).T.astype(np.float32)
    return of_classes


def _correlated(
    noise: Any,
    factor: Array,
    size: int,
    axis_name: str | None,
    product: Callable[[Any, Array], Array],
) -> Array:
    """Returns the product [B, D] of noise with a factor, [D, k] or the rows of one replica."""
    if len(factor) == size:
        return product(noise, factor)
    # Each replica multiplies the noise of all examples by its rows. This costs it the same
    # products as the whole factor would for its own examples.
    of_all = product(lax.all_gather(noise, axis_name, tiled=True), factor)
    own: Array = lax.all_to_all(  # type: ignore[no-untyped-call]
        of_all, axis_name, split_axis=0, concat_axis=1, tiled=True
    )
    return own


def _times_factor(noise: Array, factor: Array) -> Array:
    return noise @ factor.T


def _times_components(noise: tuple[Array, Array], factor: Array) -> Array:
    """Multiplies the noise of each example, [B, k], by the k columns of its component, [B]."""

    def product(of_one: tuple[Array, Array]) -> Array:
        component, noise = of_one
        rank = len(noise)
        columns = lax.dynamic_slice_in_dim(factor, component * rank, rank, axis=1)
        return jnp.matmul(columns, noise)

    # One by one, because the columns of a batch would be copied, and a product with all columns
    # takes up to ten times as long.
    correlated: Array = lax.map(product, noise)
    return correlated


def _remainder_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    return _per_example(jax.random.normal, _keys.named(keys, "remainder"), shape)


def _smooth(coefficients: Array) -> Array:
    """Returns the inverse discrete cosine transform over all axes of each example."""
    axes = range(1, coefficients.ndim)
    smooth: Array = jax.scipy.fft.idctn(coefficients, axes=axes, norm="ortho")
    return smooth


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
    return jax.vmap(lambda key: draw(key, shape, jnp.float32))(_keys.named(keys, "prior"))

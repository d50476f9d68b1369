"""Priors: the source distributions `q'` where the flow starts.

A prior consists of arrays and a pure function. They are separate so that large arrays (a covariance
factor) are passed to compiled functions as arguments and do not become constants.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fdrl_jax import _keys, _prior_fit
from fdrl_jax._checks import count_classes, one_or_nan
from fdrl_jax._prior_fit import choose

__all__ = ["Prior", "batch", "choose", "fit", "mixture", "normal", "uniform"]
__dir__ = __all__.copy

Array = jax.Array
Batch = dict[str, Array]
_BLOCK = 32  # Examples whose components are copied at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """A source distribution.

        x0 = prior(jax.random.split(key, num_samples))

    Attributes:
      params: a pytree of arrays, possibly empty.
      sample: `(params, keys [B], batch) -> x_0 [B, ...]`, with one typed key per example. The batch
        is the one that the data source returned for the step; the priors `batch` and `mixture`
        may read it.
    """

    params: Any
    sample: Callable[[Any, Array, Batch], Array]

    def __call__(self, keys: Array, labels: ArrayLike | None = None) -> Array:
        """Returns samples, [B, ...], one per key, of these labels, [B], if they matter."""
        batch = {} if labels is None else {"label": jnp.asarray(labels)}
        return self.sample(jax.tree.map(jnp.asarray, self.params), keys, batch)


def normal(event_shape: Sequence[int], scale: float = 1.0) -> Prior:
    """Returns `N(0, scale² I)`, of examples of this shape."""
    if not scale > 0:
        raise ValueError(f"the scale of a normal prior must be positive, got {scale}")
    shape = tuple(event_shape)
    return Prior((), lambda _, keys, batch: scale * _per_example(jax.random.normal, keys, shape))


def uniform(event_shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Prior:
    """Returns the uniform distribution on a box, by default the uniform prior (UP) on `[-1, 1]`."""
    if not low < high:
        raise ValueError(f"a uniform prior needs low < high, got {low} and {high}")
    shape, draw = tuple(event_shape), jax.random.uniform
    return Prior((), lambda _, keys, batch: low + (high - low) * _per_example(draw, keys, shape))


def batch(field: str = "source", dequantisation: float = 0.0) -> Prior:
    """Returns the prior that uses images of the batch as `x_0`, for image-to-image translation.

    As to data, Gaussian noise of the standard deviation `dequantisation` is added to them.
    """

    def sample(_: Any, keys: Array, batch: Batch) -> Array:
        x = batch[field]
        if not dequantisation:
            return x
        return x + dequantisation * _per_example(jax.random.normal, keys, x.shape[1:])

    return Prior((), sample)


def fit(
    data: np.ndarray | Iterable[np.ndarray],
    *,
    num_components: int | None = 1,
    rank: int | None = None,
    labels: np.ndarray | None = None,
    clip: tuple[float, float] | None = None,
    jitter: float = 1e-4,
) -> Prior:
    """Returns the data-dependent prior (DDP, eq. 8): a mixture of Gaussians fitted to data.

    A mixture is nearer to data with clusters, so the flow has less to do. A Gaussian has the
    covariance of its examples: exactly, or, at a rank, their leading directions, and smooth noise
    with the spectrum of the rest.

    Args:
      data: examples, [N, ...], without augmentation and noise; for one Gaussian, also batches of
        them, which are read once.
      num_components: the number of clusters (k-means), of each class if there are labels; `None`
        chooses one by the number of examples.
      rank: number of directions of each Gaussian. By default, the full covariance of one Gaussian
        up to 12,288 features, and otherwise about 50 directions each.
      labels: classes of the examples, [N], from 0 to C - 1. A sample then starts from the clusters
        of its label, which `Prior.sample` reads in the batch under "label".
      clip: the range to which samples are clipped, if any; (-1, 1) for images.
      jitter: a variance added to every feature, in the squared unit of the data.

    Raises:
      ValueError: for examples or labels that are missing or not finite, or numbers out of range.
    """
    if num_components is not None and num_components < 1:
        raise ValueError(f"the number of components must be at least 1, got {num_components}")
    if isinstance(data, np.ndarray | jax.Array):
        examples, batches = np.asarray(data), _prior_fit.batches(np.asarray(data))
        num, event_shape = len(examples), examples.shape[1:]
    elif labels is None and num_components == 1:
        rows = iter(data)
        first = next(rows, np.empty((0, 1)))
        batches, num, event_shape = itertools.chain([first], rows), 0, np.shape(first)[1:]
    else:
        raise ValueError("a mixture needs all examples in one array, not in batches")
    num_classes = None if labels is None else count_classes(labels, num)
    wanted = {"num_components": num_components, "rank": rank, "num_classes": num_classes}
    num_components, rank = choose(num, math.prod(event_shape), **wanted)
    if num_components == 1 and labels is None:
        params = _prior_fit.fit_one(batches, rank, jitter)
    else:
        params = _prior_fit.fit_mixture(examples, num_components, rank, jitter, labels)
    return mixture(params, event_shape, clip=clip)


def mixture(
    params: Mapping[str, np.ndarray | Array],
    event_shape: Sequence[int],
    *,
    clip: tuple[float, float] | None = None,
) -> Prior:
    """Returns `Σ_m w_m N(μ_m, F_m F_mᵀ + C diag(s_m²) Cᵀ)`, the prior of arrays that `fit` found.

    Args:
      params: "weights", `w`, [M], or a row for each class, [C, M]; "mean", `μ`, [M, D]; "factor",
        all `F` side by side, [D, M k]; and, unless the factors are exact, "remainder_scale", `s`,
        [M, ...], the standard deviations of the coefficients of the orthonormal discrete cosine
        transform of the rest.
      event_shape: shape of one example, of D numbers.
      clip: as for `fit`.
    """
    # Arrays stay where they are: those of the host may be too large for a single device.
    params = {name: array.astype(np.float32, copy=False) for name, array in params.items()}
    shape, size, num = tuple(event_shape), math.prod(event_shape), len(params["mean"])
    rank = params["factor"].shape[1] // num
    expected = {
        "weights": (*params["weights"].shape[:-1], num),
        "mean": (num, size),
        "factor": (size, num * rank),
        "remainder_scale": (num, *shape),
    }
    for name, array in params.items():
        if array.shape != expected[name]:
            raise ValueError(
                f"{name} of {num} Gaussians must have shape {expected[name]}, got {array.shape}"
            )

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        noise = _per_example(jax.random.normal, keys, (rank,))
        if num == 1:
            chosen = jnp.zeros(len(keys), jnp.int32)
            correlated = noise @ params["factor"].T
        else:
            chosen = _choose_components(params["weights"], keys, batch)
            correlated = _times_components(chosen, noise, params["factor"])
        x = (params["mean"][chosen] + correlated).reshape(-1, *shape)
        if "remainder_scale" in params:
            other_keys = _keys.named(keys, "remainder")
            white = _per_example(jax.random.normal, other_keys, shape)
            coefficients, axes = params["remainder_scale"][chosen] * white, range(1, 1 + len(shape))
            x = x + jax.scipy.fft.idctn(coefficients, axes=axes, norm="ortho")
        if params["weights"].ndim == 2:
            valid = one_or_nan(batch["label"], len(params["weights"]))
            x = x * jnp.reshape(valid, (-1, *[1] * len(shape)))
        return x if clip is None else jnp.clip(x, *clip)

    return Prior(params, sample)


def _choose_components(weights: Array, keys: Array, batch: Batch) -> Array:
    """Draws a component per key, [B], with the weights of its label if there are classes."""
    logits = jnp.log(weights)
    by_class = logits.ndim == 2
    if by_class:
        if "label" not in batch:
            raise ValueError("this prior has a row of weights for each class: it needs labels")
        logits = logits[batch["label"]]
    draw = jax.vmap(jax.random.categorical, (0, 0 if by_class else None))
    return draw(_keys.named(keys, "component"), logits)


def _times_components(chosen: Array, noise: Array, factor: Array) -> Array:
    """Multiplies the noise of each example, [B, k], by the k columns of its component, [B]."""
    rank = noise.shape[1]

    def product(of_one: tuple[Array, Array]) -> Array:
        component, noise = of_one
        columns = lax.dynamic_slice_in_dim(factor, component * rank, rank, axis=1)
        return jnp.matmul(columns, noise)

    def in_blocks(size: int | None) -> Callable[[Array, Array], Array]:
        return lambda *of_all: lax.map(product, of_all, batch_size=size)

    # A block copies the columns of its examples, which a CPU avoids one by one. A whole batch would
    # copy too many, and a product with all columns takes up to ten times as long.
    of_device = {"cpu": in_blocks(None), "default": in_blocks(_BLOCK)}
    correlated: Array = lax.platform_dependent(chosen, noise, **of_device)
    return correlated


def _per_example(draw: Callable[..., Array], keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: draw(key, shape, jnp.float32))(_keys.named(keys, "prior"))

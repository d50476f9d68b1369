"""Sets that need no files: densities in the plane, and the digits of scikit-learn."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from experiments.data.shuffle import shuffled_indices
from experiments.data.source import Density, Labels, Source, Starts, spread
from experiments.errors import DataError

Array = jax.Array
_NUM_TRAINING = 50_000  # Examples that represent the infinite training set.
_ROWS = 1_000  # A block of 1,000 x 1,000 distances takes 8 MB.


@functools.cache
def swissroll() -> Source:
    """Coordinates 0 and 2 of scikit-learn's `make_swiss_roll`, noise 0.25, divided by 7.5."""

    def sample(key: Array) -> Array:
        angle_key, noise_key = jax.random.split(key)
        angle = 1.5 * jnp.pi * (1.0 + 2.0 * jax.random.uniform(angle_key))
        spiral = angle * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return (spiral + 0.25 * jax.random.normal(noise_key, (2,))) / 7.5

    # The density is a sum of Gaussians at points of the spiral that are at most 0.6 standard
    # deviations apart, so that it equals the integral to seven digits.
    angles = 1.5 * np.pi * (1.0 + 2.0 * (np.arange(1_000) + 0.5) / 1_000)
    spiral = angles[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1) / 7.5
    return _points("swissroll", sample, Density(_log_density(spiral, 0.25 / 7.5)))


@functools.cache
def gaussians8() -> Source:
    """Eight Gaussians of standard deviation 0.02 on a circle of radius 2, divided by 1.414."""
    angles = np.arange(8) * (np.pi / 4.0)
    return _mixture("8gaussians", 2.0 * np.stack([np.cos(angles), np.sin(angles)], -1), 0.02, 1.414)


@functools.cache
def gaussians25() -> Source:
    """25 Gaussians of standard deviation 0.05 on a 5 x 5 grid of spacing 2, divided by 2.828."""
    axis = np.arange(-4.0, 5.0, 2.0)
    centres = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return _mixture("25gaussians", centres, 0.05, 2.828)


def _mixture(name: str, centres: np.ndarray, std: float, divisor: float) -> Source:
    modes, mode_std = (centres / divisor).astype(np.float32), std / divisor

    def sample(key: Array) -> Array:
        mode_key, noise_key = jax.random.split(key)
        centre = jnp.asarray(modes)[jax.random.randint(mode_key, (), 0, len(modes))]
        return centre + mode_std * jax.random.normal(noise_key, (2,))

    return _points(name, sample, Density(_log_density(modes, mode_std), modes, mode_std))


def _log_density(centres: np.ndarray, std: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the log-density of a mixture of equal round Gaussians with equal weights."""

    def log_density(points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float64)
        blocks = (points[first : first + _ROWS] for first in range(0, len(points), _ROWS))
        exponents = (-cdist(block, centres, "sqeuclidean") / (2.0 * std**2) for block in blocks)
        sums = np.concatenate([logsumexp(block, axis=1) for block in exponents])
        return sums - np.log(2.0 * np.pi * std**2 * len(centres))

    return log_density


def _points(name: str, sample: Callable[[Array], Array], density: Density) -> Source:
    """Returns points that are sampled on the device, new ones in every batch."""

    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        return {"real": jax.vmap(sample)(keys)}

    @functools.partial(jax.jit, static_argnums=0)  # One program per number, not one per call.
    def drawn(num: int, seed: int) -> Array:
        # Folding in a number keeps this stream apart from those of training.
        root = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
        return jax.vmap(sample)(jax.random.split(root, num))

    return Source(
        name,
        event_shape=(2,),
        draw=draw,
        train_batches=lambda num=None: iter([np.asarray(drawn(num or _NUM_TRAINING, 0))]),
        held_out=lambda num, seed: np.asarray(drawn(num, seed)),
        density=density,
        identity=name,
    )


def digits(source_class: str = "", target_class: str = "") -> Source:
    """1,797 grey 8 x 8 images in [-1, 1] (Alpaydin and Kaynak, UCI, 1998); a fifth is held out.

    A pair of classes starts from the digit `source_class` and learns `target_class`.
    """
    from sklearn.datasets import load_digits  # Not above: importing it takes seconds.
    from sklearn.model_selection import train_test_split

    data = load_digits()
    classes = tuple(map(str, data.target_names))
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, data.target, test_size=360, random_state=0, stratify=data.target
    )
    name, arrays, starts = "digits", {}, None
    if source_class or target_class:
        if not {source_class, target_class} <= set(classes):
            given = f"data.source_class={source_class!r}, data.target_class={target_class!r}"
            raise DataError(f"{given} must both be digits, {', '.join(classes)}")
        name = f"digits {source_class} to {target_class}"
        arrays["source"] = train[train_labels == int(source_class)]
        first = held_out[held_out_labels == int(source_class)]
        sources = np.concatenate([first, arrays["source"]])
        starts = Starts(lambda at: sources[at % len(sources)], len(first), len(sources))
        of_target, unseen = train_labels == int(target_class), held_out_labels == int(target_class)
        train, train_labels = train[of_target], train_labels[of_target]
        held_out, held_out_labels = held_out[unseen], held_out_labels[unseen]
    arrays |= {"real": train, "label": train_labels.astype(np.int32)}

    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        indices = shuffled_indices(key, positions, len(arrays["real"]))
        batch = {name: arrays[name][indices] for name in ("real", "label")}
        if "source" in arrays:
            others = shuffled_indices(jax.random.fold_in(key, 1), positions, len(arrays["source"]))
            batch["source"] = arrays["source"][others]
        return batch

    return Source(
        name="digits",
        event_shape=images.shape[1:],
        arrays=arrays,
        draw=draw,
        train_batches=lambda num=None: iter([train[spread(len(train), num)]]),
        held_out=lambda num, seed: held_out[:num],
        num_train=len(train),
        num_held_out=len(held_out),
        labels=Labels(train_labels, held_out_labels, classes),
        starts=starts,
        identity=name,
    )


# By the setting `data.name`.
_POINTS = {"swissroll": swissroll, "8gaussians": gaussians8, "25gaussians": gaussians25}
BUILT_IN: dict[str, Callable[[], Source]] = {**_POINTS, "digits": digits}

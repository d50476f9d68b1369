"""Labelled images from a zip, split so that no contestant sees what it is judged by."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import formats
from experiments.data.decode import Transform, decode, to_unit
from experiments.errors import UserError
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng


class Images(NamedTuple):
    """Images, [N, H, W, C] uint8, and their classes, [N] int32, on the host or the device."""

    pixels: Any
    labels: Any


class Split(NamedTuple):
    """Three parts of a data set without a common image.

    Attributes:
      contestants: 70%, on which all contestants train.
      judge: 20%, on which the classifier trains.
      reference: 10%, with which samples are compared.
    """

    contestants: Images
    judge: Images
    reference: Images


def load(path: Path) -> Split:
    """Reads a zip with one folder of PNG or JPEG files per class; the split is always the same.

    Raises:
      UserError: if it has no such files, or images of different sizes.
    """
    images, labels = read(path)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [len(order) * 7 // 10, len(order) * 9 // 10])
    return Split(*(Images(images[part], labels[part]) for part in parts))


def read(path: Path) -> Images:
    """Reads all images of such a zip, ordered by class and name; raises as `load`."""
    records = formats.Tree(str(path)).records()
    if records.labels is None:
        raise UserError(f"{path}: expected a folder of images per class")
    stored = Transform(channels=0)
    pixels = [decode(records.read(index), stored) for index in range(len(records))]
    if len(shapes := {image.shape for image in pixels}) != 1:
        found = ", ".join(map(str, sorted(shapes)[:3]))
        raise UserError(f"{path}: expected images of one size, found {found}")
    return Images(np.stack(pixels), records.labels)


def draw(images: Images, key: jax.Array, positions: jax.Array, *, flip: bool) -> Batch:
    """Draws random examples, one per position [B], and mirrors half of them if `flip` is set."""
    chosen = random_rows(key, positions, len(images.pixels))
    real, labels = to_unit(images.pixels[chosen]), images.labels[chosen]
    if flip:
        keys = _keys(key, positions)
        mirrored = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1)))(keys)
        real = jnp.where(mirrored[:, None, None, None], real[:, :, ::-1], real)
    return {"real": real, "label": labels}


def random_rows(key: jax.Array, positions: jax.Array, num: int) -> jax.Array:
    """Draws a number below `num` for each position, [B]."""
    keys = _keys(key, positions)
    rows: jax.Array = jax.vmap(lambda k: jax.random.randint(k, (), 0, num))(keys)
    return rows


def draw_noise(
    key: jax.Array, stream: rng.Stream, positions: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Draws normal noise of a shape for each position, [B, *shape]."""
    keys = rng.example_keys(key, stream, positions)
    drawn: jax.Array = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    return drawn


def _keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    keys: jax.Array = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    return keys

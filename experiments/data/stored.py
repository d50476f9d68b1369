"""A `Source` of stored images, for all formats."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.decode import Transform, to_unit
from experiments.data.formats import digest
from experiments.data.shuffle import shuffled_indices
from experiments.data.source import Labels, Source, Starts, spread
from experiments.data.split import open_parts
from experiments.data.stream import Images, all_batches, decode_all, feed, probe
from experiments.errors import DataError
from experiments.settings import Data

Array = jax.Array
MAX_IN_MEMORY_BYTES = 2**28  # Of pixels; larger sets are streamed.


def stored_source(options: Data) -> Source:
    """Opens a set of images. A small one is decoded once and stays on the device."""
    transform = Transform(*(getattr(options, key) for key in Transform._fields))
    train, held_out = {}, {}
    for name, (records, others) in open_parts(options).items():
        train[name] = probe(records, transform)
        # One fixed random order, because held-out images are often sorted by class.
        order = np.random.default_rng(0).permutation(len(others))
        held_out[name] = train[name]._replace(records=others.subset(order))
    shapes = [images.shape for images in train.values()]
    if len(set(shapes)) > 1:
        found = f"differ in height, width or channels, {shapes[1]} and {shapes[0]}"
        raise DataError(f"the two domains {found}; set data.image_size or data.channels")
    num_bytes = sum(len(images.records) * math.prod(images.shape) for images in train.values())
    in_memory, arrays = num_bytes <= MAX_IN_MEMORY_BYTES, {}
    if in_memory:
        arrays = {name: decode_all(images, "training images") for name, images in train.items()}
    real, unseen, pixels, labels = train["real"], held_out["real"], arrays.get("real"), None
    if real.records.labels is not None and unseen.records.labels is not None:
        labels = Labels(real.records.labels, unseen.records.labels, real.records.classes)
        if in_memory:
            arrays["label"] = labels.train
    of_labels = () if labels is None else (labels.train, labels.classes)
    return Source(
        name=options.name,
        event_shape=real.shape,
        arrays=arrays or (),
        draw=_make_draw(tuple(train), options.random_flip),
        train_batches=lambda num=None: _train_batches(real, pixels, num),
        held_out=lambda num, seed: _first(unseen, num),
        num_train=len(real.records),
        num_held_out=len(unseen.records),
        labels=labels,
        open_feed=None if in_memory else functools.partial(feed, train),
        starts=_starts(held_out["source"], train["source"]) if "source" in train else None,
        identity=digest(*(of.records.identity for of in train.values()), *of_labels),
    )


def _make_draw(names: tuple[str, ...], random_flip: bool) -> Callable[..., dict[str, Array]]:
    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        batch = {}
        stored = arrays if host_batch is None else host_batch
        for number, name in enumerate(names):
            order_key, flip_key = jax.random.split(jax.random.fold_in(key, number))
            rows: Any = ...  # All rows of a host batch.
            if host_batch is None:
                rows = shuffled_indices(order_key, positions, len(arrays[name]))
            if name == "real" and "label" in stored:
                batch["label"] = stored["label"][rows]
            batch[name] = images = to_unit(stored[name][rows])
            if random_flip:  # Mirrors half of the images, chosen by their positions.
                keys = jax.vmap(jax.random.fold_in, (None, 0))(flip_key, positions)
                mirrored = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
                batch[name] = jnp.where(mirrored, images[:, :, ::-1], images)
        return batch

    return draw


def _train_batches(
    images: Images, pixels: np.ndarray | None, num: int | None
) -> Iterator[np.ndarray]:
    chosen, size = spread(len(images.records), num), images.batch_size
    if pixels is None:
        return map(to_unit, all_batches(images.subset(chosen)))
    return (to_unit(pixels[chosen[i : i + size]]) for i in range(0, len(chosen), size))


def _first(images: Images, num: int) -> np.ndarray:
    some = images.subset(np.arange(min(num, len(images.records))))
    return to_unit(np.concatenate(list(all_batches(some))))


def _starts(held_out: Images, train: Images) -> Starts:
    num_held_out, total = len(held_out.records), len(held_out.records) + len(train.records)

    def load(positions: np.ndarray) -> np.ndarray:
        indices = (positions % total - num_held_out).tolist()  # Negative ones are held out.
        return to_unit(np.stack([(train if i >= 0 else held_out).load(i) for i in indices]))

    return Starts(load, num_held_out, total)

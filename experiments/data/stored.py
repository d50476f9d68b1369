"""A `Source` of stored images, for all formats."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.decode import Transform, to_unit
from experiments.data.decoded import Images, probe, spread
from experiments.data.records import Problems, digest
from experiments.data.shuffle import shuffled_indices
from experiments.data.source import DataOptions, Labels, Source, Starts, refuse
from experiments.data.split import open_parts
from experiments.data.stream import Reading, all_batches, decode_all, feed
from experiments.errors import DataError

Array = jax.Array
_NONE_HELD_OUT = "none of the held-out images can be read"


def stored_source(options: DataOptions, *, blank: bool = False) -> Source:
    """Opens a set of images, or a pair of domains.

    Sets of at most `in_memory_megabytes` of pixels are decoded here once and stay on the device,
    or replaced by black images if they are `blank`. Larger sets are streamed.

    Raises:
      DataError: for data that are missing, or for unreadable images unless they are skipped.
    """
    problems = Problems(options.on_error)
    reading = Reading(problems, options.num_workers, options.num_threads, options.prefetch_batches)
    transform = Transform(*(getattr(options, key) for key in Transform._fields))
    train, held_out = {}, {}
    for name, (records, others) in open_parts(options, problems).items():
        train[name] = probe(records, transform, problems)
        # One fixed random order, because held-out images are often sorted by class.
        order = np.random.default_rng(0).permutation(len(others))
        held_out[name] = train[name]._replace(records=others.subset(order))
    shapes = [images.shape for images in train.values()]
    if len(set(shapes)) > 1:
        raise DataError(
            f"the domains differ in height, width or channels, {shapes[1]} and {shapes[0]}; set "
            "data.image_size or data.channels"
        )
    num_bytes = sum(len(images.records) * math.prod(images.shape) for images in train.values())
    arrays, labels = {}, None
    in_memory = num_bytes <= options.in_memory_megabytes * 2**20
    if in_memory:
        for name, images in train.items():
            if blank:
                arrays[name] = np.zeros((len(images.records), *images.shape), np.uint8)
                continue
            arrays[name], numbers = decode_all(images, reading, "training images")
            if len(numbers) < len(images.records):
                train[name] = images.subset(numbers)
        if problems.skip and not blank and held_out["real"].records.labels is not None:
            # Held-out images are read later; their labels must match the readable images.
            held_out["real"] = _readable(held_out["real"], reading)
        problems.summarise()
    real, unseen = train["real"], held_out["real"]
    of_train, of_held_out = real.records.labels, unseen.records.labels
    # If streamed images may be skipped, their labels are known only after all have been read.
    if of_train is not None and of_held_out is not None and (in_memory or not problems.skip):
        labels = Labels(of_train, of_held_out, real.records.classes)
        if in_memory:
            arrays["label"] = of_train
    pixels = arrays.get("real")
    return Source(
        name=options.name,
        event_shape=real.shape,
        arrays=arrays or (),
        draw=_make_draw(tuple(train), options.random_flip),
        train_batches=lambda num=None: _train_batches(real, pixels, num, reading),
        held_out=lambda num, seed: _first(unseen, num, reading),
        labels=labels,
        open_feed=None if in_memory else functools.partial(feed, train, reading),
        starts=_starts(held_out["source"], train["source"], reading) if "source" in train else None,
        identity=digest(*(images.records.identity for images in train.values())),
        fingerprint=digest(real.records.fingerprint, tuple(real.transform)),
    )


def absent_source(options: DataOptions) -> Source:
    """Returns a stored set of images that is not there: enough to build and compile what reads it.

    The images are streamed, as those of a large set are. Whatever would read one raises.

    Raises:
      DataError: if the settings leave the size of the images to the files.
    """
    for key in ("image_size", "channels"):
        if not getattr(options, key):
            raise DataError(
                "the size of the images follows from files that are not given: set --data_dir, or "
                f"--config.data.{key}=NUMBER"
            )
    is_pair = options.name == "pair" or bool(options.source_class or options.target_class)
    names = ("real", "source") if is_pair else ("real",)
    return Source(
        name=options.name,
        event_shape=(options.image_size, options.image_size, options.channels),
        draw=_make_draw(names, options.random_flip),
        open_feed=refuse,
        starts=Starts(refuse, 0, 0) if is_pair else None,
    )


def _readable(images: Images, reading: Reading) -> Images:
    found = [numbers for _, numbers in all_batches(images, reading)]
    if not found:
        raise DataError(_NONE_HELD_OUT)
    return images.subset(np.concatenate(found))


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
            images = to_unit(stored[name][rows])
            batch[name] = _flip(flip_key, positions, images) if random_flip else images
        return batch

    return draw


def _flip(key: Array, positions: Array, images: Array) -> Array:
    """Mirrors half of the images, left to right, chosen by their positions."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _train_batches(
    images: Images, pixels: np.ndarray | None, num: int | None, reading: Reading
) -> Iterator[np.ndarray]:
    if pixels is None:
        return _unit_batches(images.subset(spread(len(images.records), num)), reading)
    chosen, size = spread(len(pixels), num), images.batch_size
    parts = (chosen[first : first + size] for first in range(0, len(chosen), size))
    return (to_unit(pixels[part]) for part in parts)


def _unit_batches(images: Images, reading: Reading) -> Iterator[np.ndarray]:
    return (to_unit(pixels) for pixels, _ in all_batches(images, reading))


def _first(images: Images, num: int, reading: Reading) -> np.ndarray:
    some = images.subset(np.arange(min(num, len(images.records))))
    # For few images, starting worker processes would take longer than reading.
    parts = list(_unit_batches(some, reading._replace(num_workers=0)))
    if not parts:
        raise DataError(_NONE_HELD_OUT)
    return np.concatenate(parts)


def _starts(held_out: Images, train: Images, reading: Reading) -> Starts:
    num_held_out = len(held_out.records)
    total = num_held_out + len(train.records)

    def load(position: int) -> np.ndarray:
        # An unreadable image is replaced by the next one.
        for number in range(position, position + total):
            index = number % total - num_held_out
            images = train if index >= 0 else held_out  # A negative index counts from the end.
            try:
                return images.load(index)
            except ValueError as error:
                reading.problems.report(images.records.name(index), str(error))
        raise DataError("none of the images to start from can be read")

    return Starts(
        lambda positions: to_unit(np.stack([load(int(p)) for p in positions])), num_held_out, total
    )

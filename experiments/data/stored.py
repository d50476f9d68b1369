"""A `Source` of stored images, for all formats."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.decode import to_unit
from experiments.data.decoded import Images, probe, spread
from experiments.data.records import digest
from experiments.data.shuffle import shuffled_indices
from experiments.data.source import DataOptions, Labels, Source, Starts, refuse
from experiments.data.split import open_parts
from experiments.data.stream import (
    Feed,
    Reading,
    all_batches,
    decode_all,
    training_batches,
)
from experiments.errors import DataError
from fdrl_jax import parallel

Array = jax.Array


class _Side(NamedTuple):
    """The images of one domain, with the `pixels` of training images that are in memory."""

    train: Images
    held_out: Images
    pixels: np.ndarray | None
    labels: Labels | None


def stored_source(options: DataOptions, *, blank: bool = False) -> Source:
    """Opens a set of images, or a pair of domains.

    Sets of at most `in_memory_megabytes` of pixels are decoded here once and stay on the device,
    or replaced by black images if they are `blank`. Larger sets are streamed.

    Raises:
      DataError: for data that are missing, or for unreadable images unless they are skipped.
    """
    reading = options.reading
    opened = {}
    for name, (train_records, held_out_records) in open_parts(options, reading.problems).items():
        train = probe(train_records, options.transform, reading.problems)
        # One fixed random order, because held-out images are often sorted by class.
        order = np.random.default_rng(0).permutation(len(held_out_records))
        held_out = train._replace(records=held_out_records.subset(order))
        opened[name] = _labelled(train, held_out) if name == "real" else (train, held_out)
    in_memory = sum(train.num_bytes for train, _ in opened.values()) <= (
        options.in_memory_megabytes * 2**20
    )
    sides = {
        name: _side(*images, reading, in_memory=in_memory, blank=blank)
        for name, images in opened.items()
    }
    if in_memory:
        reading.problems.summarise()
    real, source = sides["real"], sides.get("source")
    if source is not None and source.train.shape != real.train.shape:
        raise DataError(
            f"the domains differ in height, width or channels, {source.train.shape} and "
            f"{real.train.shape}; set data.image_size or data.channels"
        )
    arrays: Any = {name: side.pixels for name, side in sides.items()} if in_memory else ()
    if in_memory and real.labels is not None:
        arrays["label"] = real.labels.train
    return Source(
        name=options.name,
        event_shape=real.train.shape,
        arrays=arrays,
        draw=_make_draw(tuple(sides), options.random_flip),
        train_batches=lambda num=None: _train_batches(real, num, reading),
        held_out=lambda num, seed: _first(real.held_out, num, reading),
        labels=real.labels,
        open_feed=None if in_memory else _feed_opener(sides, reading),
        starts=None if source is None else _starts(source, reading),
        identity=digest(*(side.train.records.identity for side in sides.values())),
        fingerprint=real.train.fingerprint,
    )


def absent_source(options: DataOptions) -> Source:
    """Returns a stored set of images that is not there: enough to build and compile what reads it.

    The images are streamed, as those of a large set are. Whatever would read one raises.

    Raises:
      DataError: if the settings leave the size of the images to the files.
    """
    if not options.image_size or not options.channels:
        missing = "data.image_size" if not options.image_size else "data.channels"
        raise DataError(
            f"the size of the images follows from files that are not given: set --data_dir, or "
            f"--config.{missing}=NUMBER"
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


def _labelled(train: Images, held_out: Images) -> tuple[Images, Images]:
    """Numbers the classes of held-out images as in training.

    Held-out images from a separate split number their own classes and may lack some. If they have a
    class that training lacks, or no labels, neither part gets labels.
    """
    classes, of_train = train.records.classes, train.records.labels
    others, of_held_out = held_out.records.classes, held_out.records.labels
    if of_train is None or of_held_out is None or not set(others) <= set(classes):
        return train, held_out
    numbers = np.array([classes.index(name) for name in others], np.int32)
    return (
        train._replace(labels=np.asarray(of_train, np.int32)),
        held_out._replace(labels=numbers[of_held_out]),
    )


def _side(
    train: Images, held_out: Images, reading: Reading, *, in_memory: bool, blank: bool
) -> _Side:
    """Decodes the training images of a domain into one array, if they fit in memory."""
    skips, pixels, numbers = reading.problems.skip, None, np.arange(len(train.records))
    if in_memory and blank:
        pixels = np.zeros((len(numbers), *train.shape), np.uint8)
    elif in_memory:
        pixels, numbers = decode_all(train, reading, "training images")
        if skips and held_out.labels is not None:
            # Held-out images are read later; their labels must match the readable images.
            found = [numbers for _, numbers in all_batches(held_out, reading)]
            if not found:
                raise _none_held_out()
            held_out = held_out.subset(np.concatenate(found))
    # If streamed images may be skipped, their labels are known only after all have been read.
    if train.labels is None or held_out.labels is None or (skips and not in_memory):
        return _Side(train, held_out, pixels, None)
    labels = Labels(train.labels[numbers], held_out.labels, train.records.classes)
    return _Side(train, held_out, pixels, labels)


def _none_held_out() -> DataError:
    return DataError("none of the held-out images can be read")


def _make_draw(names: tuple[str, ...], random_flip: bool) -> Callable[..., dict[str, Array]]:
    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        batch = {}
        for number, name in enumerate(names):
            order_key, flip_key = jax.random.split(jax.random.fold_in(key, number))
            if host_batch is None:
                indices = shuffled_indices(order_key, positions, len(arrays[name]))
                pixels = arrays[name][indices]
                if name == "real" and "label" in arrays:
                    batch["label"] = arrays["label"][indices]
            else:
                pixels = host_batch[name]
                if name == "real" and "label" in host_batch:
                    batch["label"] = host_batch["label"]
            images = to_unit(pixels)
            batch[name] = _flip(flip_key, positions, images) if random_flip else images
        return batch

    return draw


def _flip(key: Array, positions: Array, images: Array) -> Array:
    """Mirrors half of the images, left to right, chosen by their positions."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _feed_opener(
    sides: Mapping[str, _Side], reading: Reading
) -> Callable[[int, int, int, int], Feed]:
    def open_feed(seed: int, batch_size: int, start: int, max_steps: int) -> Feed:
        batches = training_batches(
            {name: side.train for name, side in sides.items()},
            reading,
            seed=seed,
            batch_size=batch_size,
            start=start,
            process=(jax.process_index(), jax.process_count()),
        )
        return Feed(batches, max_steps, parallel.num_devices(), reading.problems)

    return open_feed


def _train_batches(side: _Side, num: int | None, reading: Reading) -> Iterator[np.ndarray]:
    if side.pixels is None:
        chosen = spread(len(side.train.records), num)
        return _unit_batches(side.train if num is None else side.train.subset(chosen), reading)
    pixels, size = side.pixels, side.train.batch_size
    chosen = spread(len(pixels), num)
    parts = (chosen[first : first + size] for first in range(0, len(chosen), size))
    return (to_unit(pixels[part]) for part in parts)


def _unit_batches(images: Images, reading: Reading) -> Iterator[np.ndarray]:
    return (to_unit(pixels) for pixels, _ in all_batches(images, reading))


def _first(images: Images, num: int, reading: Reading) -> np.ndarray:
    some = images.subset(np.arange(min(num, len(images.records))))
    # For few images, starting worker processes would take longer than reading.
    parts = list(_unit_batches(some, reading._replace(num_workers=0)))
    if not parts:
        raise _none_held_out()
    return np.concatenate(parts)


def _starts(side: _Side, reading: Reading) -> Starts:
    num_held_out = len(side.held_out.records)
    total = num_held_out + len(side.train.records)

    def place(number: int) -> tuple[Images, int]:
        number %= total
        if number < num_held_out:
            return side.held_out, number
        return side.train, number - num_held_out

    def load(position: int) -> np.ndarray:
        # An unreadable image is replaced by the next one.
        for images, index in map(place, range(position, position + total)):
            try:
                return images.load(index)
            except ValueError as error:
                reading.problems.report(images.records.name(index), str(error))
        raise DataError("none of the images to start from can be read")

    return Starts(
        lambda positions: to_unit(np.stack([load(int(p)) for p in positions])), num_held_out, total
    )

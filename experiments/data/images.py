"""A `Source` of images, whatever they are stored in."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.feed import Feed
from experiments.data.options import DataOptions
from experiments.data.parts import open_parts
from experiments.data.pipeline import Images, Reading, all_batches, probe, training_batches
from experiments.data.pixels import to_unit
from experiments.data.problems import Problems
from experiments.data.records import Records, Subset, digest
from experiments.data.source import Source, shuffled_indices
from experiments.errors import DataError
from fdrl_jax import parallel

Array = jax.Array
_BATCH_BYTES = 2**25  # Of float32 pixels in a pass over the data.


class _Side(NamedTuple):
    """The images of one domain; `pixels` and `labels` of training where they are in memory."""

    train: Images
    held_out: Images
    pixels: np.ndarray | None
    labels: tuple[np.ndarray, np.ndarray] | None


def image_source(options: DataOptions) -> Source:
    """Opens a set, or a pair of domains, of images.

    Sets of at most `in_memory_megabytes` of pixels are decoded once, here, and stay on the device;
    larger ones are streamed.

    Raises:
      DataError: for data that are missing or, unless they are skipped, cannot be read.
    """
    problems = Problems(options.on_error)
    reading = Reading(options.num_workers, options.num_threads, options.prefetch_batches)
    parts = open_parts(options, problems)
    opened = {}
    for name, part in parts.items():
        train = probe(part.train, options.transform, problems)
        opened[name] = (train, Images(_mixed(part.held_out), options.transform, train.shape))
    total = sum(len(train.records) * int(np.prod(train.shape)) for train, _ in opened.values())
    in_memory = total <= options.in_memory_megabytes * 2**20
    sides = {
        name: _load(train, held_out, problems, reading)
        if in_memory
        else _Side(train, held_out, None, None)
        for name, (train, held_out) in opened.items()
    }
    if in_memory:
        problems.tell()
    real = sides["real"]
    for side in sides.values():
        if side.train.shape != real.train.shape:
            raise DataError(
                f"the domains differ in size, {side.train.shape} and {real.train.shape}; "
                "set data.image_size"
            )
    arrays: Any = {name: side.pixels for name, side in sides.items()} if in_memory else ()
    if real.labels is not None:
        arrays["label"] = np.asarray(real.labels[0], np.int32)
    return Source(
        name=options.name,
        kind="images",
        event_shape=real.train.shape,
        arrays=arrays,
        draw=_make_draw(tuple(sides), options.random_flip),
        train_batches=lambda: _float_batches(real, problems, reading),
        held_out=lambda num, seed: _first(real.held_out, num, problems, reading),
        labels=real.labels,
        classes=real.train.records.classes,
        open_feed=None if in_memory else _feed_opener(sides, problems, reading),
        starts=_starts(sides["source"], problems) if "source" in sides else None,
        num_starts=_num_starts(sides["source"]) if "source" in sides else (0, 0),
        identity=digest(*(side.train.records.identity for side in sides.values())),
        fingerprint=real.train.fingerprint,
    )


def _load(train: Images, held_out: Images, problems: Problems, reading: Reading) -> _Side:
    """Decodes the training images of a side into one array."""
    parts = list(all_batches(train, problems, reading, _batch_size(train)))
    pixels = np.concatenate([part for part, _ in parts])
    labels = train.records.labels
    if labels is None or held_out.records.labels is None:
        return _Side(train, held_out, pixels, None)
    if problems.skip:  # Held-out images are read later: their labels must be those of these images.
        held_out = _readable(held_out, problems, reading)
    held_out_labels = _numbered_alike(held_out.records, train.records.classes)
    if held_out_labels is None:
        return _Side(train, held_out, pixels, None)
    of_pixels = labels[np.concatenate([numbers for _, numbers in parts])]
    return _Side(train, held_out, pixels, (of_pixels, held_out_labels))


def _readable(images: Images, problems: Problems, reading: Reading) -> Images:
    found = [numbers for _, numbers in all_batches(images, problems, reading, _batch_size(images))]
    if not found:
        raise _none_held_out()
    return images._replace(records=Subset(images.records, np.concatenate(found)))


def _numbered_alike(held_out: Records, classes: tuple[str, ...]) -> np.ndarray | None:
    """Returns the labels of held-out images by the numbers that classes have in training.

    A part that comes by itself numbers its own classes and may lack some. `None` if it has one that
    training lacks.
    """
    if held_out.labels is None or not set(held_out.classes) <= set(classes):
        return None
    numbers = np.array([classes.index(name) for name in held_out.classes], np.int32)
    return numbers[held_out.labels]


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
            images = to_unit(pixels)
            batch[name] = _flip(flip_key, positions, images) if random_flip else images
        return batch

    return draw


def _flip(key: Array, positions: Array, images: Array) -> Array:
    """Mirrors half of the images, left to right; which ones follows from their positions."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def _feed_opener(
    sides: Mapping[str, _Side], problems: Problems, reading: Reading
) -> Callable[[int, int, int, int], Feed]:
    def open_feed(seed: int, batch_size: int, start: int, max_steps: int) -> Feed:
        batches = training_batches(
            {name: side.train for name, side in sides.items()},
            problems,
            reading,
            seed=seed,
            batch_size=batch_size,
            start=start,
            process=(jax.process_index(), jax.process_count()),
        )
        return Feed(batches, max_steps, parallel.num_devices(), problems)

    return open_feed


def _float_batches(side: _Side, problems: Problems, reading: Reading) -> Iterator[np.ndarray]:
    size = _batch_size(side.train)
    if side.pixels is None:
        batches = (part for part, _ in all_batches(side.train, problems, reading, size))
    else:
        pixels = side.pixels
        batches = (pixels[first : first + size] for first in range(0, len(pixels), size))
    return (to_unit(batch) for batch in batches)


def _mixed(records: Records) -> Subset:
    """Puts held-out images, which often lie class by class, in one fixed random order."""
    return Subset(records, np.random.default_rng(0).permutation(len(records)))


def _batch_size(images: Images) -> int:
    return max(1, min(1_000, _BATCH_BYTES // (4 * int(np.prod(images.shape)))))


def _first(images: Images, num: int, problems: Problems, reading: Reading) -> np.ndarray:
    indices = np.arange(min(num, len(images.records)))
    some = images._replace(records=Subset(images.records, indices))
    # Few images: worker processes would take longer to start than to read them.
    batches = all_batches(some, problems, reading._replace(num_workers=0), _batch_size(images))
    parts = [to_unit(part) for part, _ in batches]
    if not parts:
        raise _none_held_out()
    return np.concatenate(parts)


def _num_starts(side: _Side) -> tuple[int, int]:
    num_held_out = len(side.held_out.records)
    return num_held_out, num_held_out + len(side.train.records)


def _starts(side: _Side, problems: Problems) -> Callable[[np.ndarray], np.ndarray]:
    num_held_out, total = _num_starts(side)

    def load(position: int) -> np.ndarray:
        # An unreadable image gives way to the next one.
        for number in range(position, position + total):
            place = number % total
            held_out = place < num_held_out
            images = side.held_out if held_out else side.train
            index = place if held_out else place - num_held_out
            try:
                return images.load(index)
            except ValueError as error:
                problems.report(images.records.name(index), str(error))
        raise DataError("none of the images to start from can be read")

    return lambda positions: to_unit(np.stack([load(int(p)) for p in positions]))

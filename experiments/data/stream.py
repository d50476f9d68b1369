"""Streams stored images: batches by Grain, and dispatches of several batches.

The example at position `p` of a run depends only on (seed, p). Grain's shuffle permutes indices
without state, differently in each epoch, and the pipeline has random access up to the batch. A run
can therefore resume after any number of batches, with any number of workers, and the batch of a
step has the same images for any number of processes.

Workers do not raise an error for a bad image, because not every error can be pickled. Instead, each
image comes with a reason why it could not be loaded, which the main process reports.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from grain.experimental import ZipMapDataset
from tqdm import tqdm

from experiments.data.decoded import MAX_CONSECUTIVE_BAD, Images, all_unreadable
from experiments.data.records import Problems
from experiments.errors import DataError
from fdrl_jax.training import parallel

# Returns the batches of the next steps; `None` for a source on the device.
Take = Callable[[int], dict[str, np.ndarray] | None]
_BAR_AFTER_SECONDS = 2.0
_REASON = "U300"  # The type of a reason: arrays of a batch cannot contain objects.


class Reading(NamedTuple):
    """How images are read."""

    problems: Problems  # Receives unreadable images.
    num_workers: int = 0  # Worker processes; 0 reads in the main process.
    num_threads: int = 4  # Per process; Pillow decodes without Python's global lock.
    prefetch_batches: int = 8  # Batches to read ahead.


@dataclass(frozen=True)
class _Load:
    """Loads the image at an index; an unreadable image is replaced by the next readable one.

    `loaded` is the index of the image in its place, or -1 if `num_tries` images are unreadable.
    """

    images: Images
    num_tries: int

    def __call__(self, index: int) -> dict[str, Any]:
        records = self.images.records
        pixels, loaded, reason = np.zeros(self.images.shape, np.uint8), -1, ""
        for tried in range(int(index), int(index) + self.num_tries):
            number = tried % len(records)
            try:
                pixels, loaded = self.images.load(number), number
                break
            except ValueError as error:
                reason = reason or str(error)
        example = {
            "pixels": pixels,
            "index": np.int64(index),
            "loaded": np.int64(loaded),
            "reason": np.array(reason, _REASON),
        }
        if records.labels is not None:
            example["label"] = np.int32(records.labels[loaded])
        return example


def training_batches(
    sides: Mapping[str, Images],
    reading: Reading,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[dict[str, np.ndarray]]:
    """Yields batches without end, each epoch in a new order.

    Both domains of a pair are shuffled separately, and the smaller one repeats more often. A batch
    may contain the end of one epoch and the beginning of the next, so all batches have the same
    size and no image is dropped. A skipped image is replaced by the next readable one, so that all
    others keep their positions.

    The first `start` batches are those that the run has used before. `process` is the index of this
    process and the number of processes, which share the batches of a step; `batch_size` is that of
    this process.

    Yields:
      Pixels by name, uint8 [batch_size, H, W, C], and the classes of the images of "real" under
      "label", int32 [batch_size], if there are any.

    Raises:
      DataError: for an unreadable image, unless it is skipped; or if a worker process dies.
    """
    index, count = process
    parts = []
    for number, images in enumerate(sides.values()):
        side_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order = grain.MapDataset.range(len(images.records)).seed(side_seed).shuffle().repeat()
        num_tries = min(MAX_CONSECUTIVE_BAD, len(images.records)) if reading.problems.skip else 1
        parts.append(order.map(_Load(images, num_tries)))
    dataset = ZipMapDataset(parts).batch(batch_size, drop_remainder=True)
    # Processes take whole batches in turn, which gives them the positions of their own replicas.
    for batches in _read(dataset[index::count][start:], reading):
        taken = {}
        for (side, images), batch in zip(sides.items(), batches, strict=True):
            _report(images, batch, reading.problems)
            lost = batch["index"][batch["loaded"] < 0]
            if len(lost):
                raise all_unreadable(images.records, int(lost[0]))
            taken[side] = batch["pixels"]
            if side == "real" and "label" in batch:
                taken["label"] = batch["label"]
        yield taken


def all_batches(
    images: Images, reading: Reading, batch_size: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every readable image once, in order; the last batch may be smaller.

    A batch has pixels, uint8 [B, H, W, C], and the indices of these images, [B].

    Raises:
      DataError: as for `training_batches`.
    """
    dataset = grain.MapDataset.range(len(images.records)).map(_Load(images, 1))
    for batch in _read(dataset.batch(batch_size or images.batch_size), reading):
        _report(images, batch, reading.problems)
        fine = batch["index"] == batch["loaded"]
        if fine.any():
            yield batch["pixels"][fine], batch["index"][fine]


def decode_all(images: Images, reading: Reading, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole set into one array, with a progress bar if that takes long.

    Returns the pixels of the readable images, uint8 [N, H, W, C], and their indices, [N].

    Raises:
      DataError: as for `training_batches`, or if no image is readable.
    """
    pixels = np.empty((len(images.records), *images.shape), np.uint8)
    numbers = np.empty(len(pixels), np.int64)
    filled = 0
    with tqdm(
        total=len(pixels),
        desc=f"reading {what}",
        unit="image",
        leave=False,
        delay=_BAR_AFTER_SECONDS,
        disable=not parallel.is_first_process(),
    ) as bar:
        for part, which in all_batches(images, reading):
            end = filled + len(part)
            pixels[filled:end], numbers[filled:end] = part, which
            bar.update(len(part))
            filled = end
    if not filled:
        raise DataError(f"none of the {len(pixels)} {what} can be read")
    return pixels[:filled], numbers[:filled]


def _read(dataset: grain.MapDataset, reading: Reading) -> Iterator[Any]:
    threads = reading.num_threads
    options = grain.ReadOptions(threads, max(threads, reading.prefetch_batches))
    stream = dataset.to_iter_dataset(options)
    if reading.num_workers:
        flags.FLAGS.mark_as_parsed()  # Grain passes the flags to its workers.
        ahead = -(-reading.prefetch_batches // reading.num_workers)
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(reading.num_workers, ahead))
    iterator = iter(stream)
    try:
        yield from iterator
    except RuntimeError as error:
        # Grain raises this if a worker was killed, for example because memory ran out.
        raise DataError(f"reading the data stopped: {error}") from error
    finally:
        # Stops the workers now and not only at garbage collection.
        getattr(iterator, "close", lambda: None)()


def _report(images: Images, batch: dict[str, Any], problems: Problems) -> None:
    bad = batch["loaded"] != batch["index"]
    for index, reason in zip(batch["index"][bad], batch["reason"][bad], strict=True):
        problems.report(images.records.name(int(index)), str(reason))


@contextlib.contextmanager
def feed(
    sides: Mapping[str, Images],
    reading: Reading,
    seed: int,
    batch_size: int,
    start: int,
    max_steps: int,
) -> Iterator[Take]:
    """Yields a function that stacks the batches of several train steps for one dispatch.

    The batches are the `training_batches` of this process, of which it uses all but the first
    `start`. `take(count)` returns arrays [devices, max_steps, B / devices, ...] by name for
    `training.steps.repeat_steps`, whose first `count` steps are set. Bad files are summarised at
    the end.

    While the device runs one dispatch, the host takes the next one from the batches that Grain has
    read ahead.
    """
    process = (jax.process_index(), jax.process_count())
    batches = training_batches(
        sides, reading, seed=seed, batch_size=batch_size, start=start, process=process
    )
    num_devices = parallel.num_devices()

    def stacked(parts: list[np.ndarray]) -> np.ndarray:
        size, event = len(parts[0]) // num_devices, parts[0].shape[1:]
        found = np.zeros((num_devices, max_steps, size, *event), parts[0].dtype)
        for step, part in enumerate(parts):
            found[:, step] = part.reshape(num_devices, size, *event)
        return found

    def take(count: int) -> dict[str, np.ndarray]:
        taken = [next(batches) for _ in range(count)]
        return {name: stacked([batch[name] for batch in taken]) for name in taken[0]}

    try:
        yield take
    finally:
        batches.close()
        reading.problems.summarise()

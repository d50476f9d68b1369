"""From stored images to batches, by Grain.

The example at position `p` of a run is a function of (seed, p) alone: Grain's shuffle permutes
indices without state, afresh each epoch, and everything up to the batch keeps random access. So a
run resumes at a number of batches, with any number of workers, and the batch of a step is the same
set of images over any number of processes.

Bad images do not raise in a worker, whose errors would have to survive pickling: an image carries
a status instead, and the main process looks into it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from grain.experimental import ZipMapDataset

from experiments.data.decoding import Transform, decode
from experiments.data.problems import Problems
from experiments.data.records import Records, digest
from experiments.errors import DataError

OK, REPLACED, LOST = 0, 1, 2
_MOST_IN_A_ROW = 100  # More unreadable images than this side by side are no accident.


class Reading(NamedTuple):
    """How much is read at the same time.

    Attributes:
      num_workers: worker processes; 0 reads in the main process.
      num_threads: threads in each process; Pillow decodes outside Python's lock.
      prefetch_batches: batches read ahead.
    """

    num_workers: int = 0
    num_threads: int = 4
    prefetch_batches: int = 8


class Images(NamedTuple):
    """An image set that is decoded when asked for; all examples have one shape."""

    records: Records
    transform: Transform
    shape: tuple[int, int, int]

    def load(self, index: int) -> np.ndarray:
        """Returns an example, uint8 of `shape`.

        Raises:
          ValueError: with the reason alone.
        """
        pixels = decode(self.records.read(index), self.transform)
        if pixels.shape != self.shape:
            sizes = [f"{s[1]} x {s[0]}" for s in (pixels.shape, self.shape)]
            raise ValueError(f"{sizes[0]} pixels where others have {sizes[1]}; set data.image_size")
        return pixels

    def reason(self, index: int) -> str:
        """Returns why an image could not be loaded."""
        try:
            self.load(index)
        except ValueError as error:
            return str(error)
        return "could not be read at first, but can be now: is the disk or the network unstable?"

    @property
    def fingerprint(self) -> str:
        """A hash of content and transform: what a fitted prior depends on."""
        return digest(self.records.fingerprint, tuple(self.transform))


def probe(records: Records, transform: Transform, problems: Problems) -> Images:
    """Finds the shape of the examples: that of the first readable image.

    Raises:
      DataError: for an unreadable image, unless such are skipped, or if there is none to read.
    """
    num = min(len(records), _MOST_IN_A_ROW)
    for index in range(num):
        try:
            pixels = decode(records.read(index), transform)
        except ValueError as error:
            problems.report(records.name(index), str(error))
            continue
        height, width, channels = pixels.shape
        return Images(records, transform, (height, width, channels))
    if not num:
        raise DataError("the data hold no image")
    raise DataError(f"all of the {num} images from {records.name(0)} on are unreadable")


@dataclass(frozen=True)
class _Load:
    """Loads the image of an index, or one of the next few in place of an unreadable one."""

    images: Images
    num_tries: int

    def __call__(self, index: int) -> dict[str, Any]:
        for attempt in range(self.num_tries):
            try:
                pixels = self.images.load(int(index + attempt) % len(self.images.records))
            except ValueError:
                continue
            return _example(pixels, index, REPLACED if attempt else OK)
        return _example(np.zeros(self.images.shape, np.uint8), index, LOST)


def _example(pixels: np.ndarray, index: int, status: int) -> dict[str, Any]:
    return {"pixels": pixels, "index": np.int64(index), "status": np.int8(status)}


@dataclass(frozen=True)
class _Name:
    """Names the sides of a pair, which Grain zips to a tuple."""

    sides: tuple[str, ...]

    def __call__(self, examples: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.sides, examples, strict=True))


def training_batches(
    sides: Mapping[str, Images],
    problems: Problems,
    reading: Reading,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches without end, each epoch in an order of its own.

    Sides of a pair are shuffled each by itself, and the smaller one begins anew more often. Epochs
    follow each other without a gap: a batch may hold the end of one and the beginning of the next,
    so none is ragged and no image is dropped.

    Args:
      sides: image sets by name.
      problems: where unreadable images are reported. A skipped one is replaced by the next
        readable one, so that all others stay where they are.
      reading: workers, threads and batches read ahead.
      seed: of the shuffle.
      batch_size: examples of a batch of this process.
      start: number of batches to leave out, those that a run has had.
      process: index of this process and number of processes, which share the batches of a step.

    Yields:
      Pixels by side, uint8 [batch_size, H, W, C].

    Raises:
      DataError: for an unreadable image, unless such are skipped; or if a worker process dies.
    """
    index, count = process
    parts = []
    for number, images in enumerate(sides.values()):
        side_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order = grain.MapDataset.range(len(images.records)).seed(side_seed).shuffle().repeat()
        tries = _MOST_IN_A_ROW if problems.skip else 1
        parts.append(order.map(_Load(images, tries)))
    dataset = ZipMapDataset(parts).map(_Name(tuple(sides))).batch(batch_size, drop_remainder=True)
    # Whole batches in turn: a process has those positions of a step whose keys its replicas have.
    for batch in _read(dataset[index::count][start:], reading):
        for side, images in sides.items():
            _report(images, batch[side], problems, lost_is_end=True)
        yield {side: batch[side]["pixels"] for side in sides}


def all_batches(
    images: Images, problems: Problems, reading: Reading, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every readable image once, in order; the last batch may be smaller.

    Yields:
      Pixels, uint8 [B, H, W, C], and the numbers of these images, [B].

    Raises:
      DataError: as `training_batches`.
    """
    dataset = grain.MapDataset.range(len(images.records)).map(_Load(images, 1)).batch(batch_size)
    for batch in _read(dataset, reading):
        _report(images, batch, problems, lost_is_end=False)
        fine = batch["status"] == OK
        if fine.any():
            yield batch["pixels"][fine], batch["index"][fine]


def _read(dataset: grain.MapDataset, reading: Reading) -> Iterator[Any]:
    threads = max(1, reading.num_threads)
    options = grain.ReadOptions(threads, max(threads, reading.prefetch_batches))
    stream = dataset.to_iter_dataset(options)
    if reading.num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands the flags on to its workers.
        ahead = -(-reading.prefetch_batches // reading.num_workers)
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(reading.num_workers, ahead))
    iterator = iter(stream)
    try:
        yield from iterator
    except RuntimeError as error:
        # Grain's word for a worker that was killed, for example by the system for its memory.
        raise DataError(f"reading the data stopped: {error}") from error
    finally:
        # Stops the workers now, and not when the garbage is collected.
        getattr(iterator, "close", lambda: None)()


def _report(images: Images, batch: dict[str, Any], problems: Problems, lost_is_end: bool) -> None:
    for index in batch["index"][batch["status"] != OK]:
        problems.report(images.records.name(int(index)), images.reason(int(index)))
    if lost_is_end and (batch["status"] == LOST).any():
        index = int(batch["index"][batch["status"] == LOST][0])
        raise DataError(
            f"{images.records.name(index)} and the next {_MOST_IN_A_ROW - 1} images are unreadable"
        )

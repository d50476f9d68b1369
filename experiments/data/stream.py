"""Images that are decoded on demand: batches by Grain, and dispatches of several batches.

The example at position `p` of a run depends only on (seed, p), because Grain's shuffle has no
state. A run can therefore resume after any batch, and with any number of processes.
"""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from grain.experimental import ZipMapDataset
from tqdm import tqdm

from experiments import devices
from experiments.data.decode import Transform, decode
from experiments.data.formats import Records
from experiments.data.source import Take, spread
from experiments.errors import DataError

_MAX_PROBED = 100  # Images that are checked to decide whether a set is grey.
_BATCH_BYTES = 2**25  # Float32 pixels per batch in a pass over the data.
# Threads, because Pillow decodes without Python's global lock, and batches decoded in advance.
_READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


class Images(NamedTuple):
    """A set of images that are decoded on demand; all examples have one shape, [H, W, C]."""

    records: Records
    transform: Transform
    shape: tuple[int, ...]

    def load(self, index: int) -> np.ndarray:
        """Returns an example, uint8 of the shape; a DataError names a bad image."""
        pixels = _decoded(self.records, index, self.transform)
        if pixels.shape != self.shape:
            found = f"the shape is {pixels.shape}, but {self.shape} in other images"
            raise self.records.bad(index, f"{found}; set data.image_size or data.channels")
        return pixels

    def subset(self, indices: np.ndarray) -> "Images":
        """Returns some of the images, in the order of the indices."""
        return self._replace(records=self.records.subset(indices))

    @property
    def batch_size(self) -> int:
        """Examples per batch in a pass over the set."""
        return max(1, min(1_000, _BATCH_BYTES // (4 * int(np.prod(self.shape)))))


def probe(records: Records, transform: Transform) -> Images:
    """Finds the shape of the examples; with `channels` 0, colour if any of a hundred has it."""
    for index in spread(len(records), _MAX_PROBED):
        if transform.channels:
            break
        with contextlib.suppress(DataError):  # Reported when it is read for use.
            if _decoded(records, int(index), Transform(channels=0)).shape[2] == 3:
                transform = transform._replace(channels=3)
    shape = _decoded(records, 0, transform).shape
    if min(shape[:2]) < 2:
        reason = f"{shape[1]} x {shape[0]} pixels; images need 2 x 2. Set data.image_size"
        raise records.bad(0, reason)
    return Images(records, transform, shape)


def _decoded(records: Records, index: int, transform: Transform) -> np.ndarray:
    try:
        return decode(records.read(index), transform)
    except ValueError as error:
        raise records.bad(index, str(error)) from error


def training_batches(
    sides: Mapping[str, Images],
    seed: int,
    batch_size: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[dict[str, np.ndarray]]:
    """Yields batches without end, after the first `start`, each epoch in a new order.

    Pixels by side, uint8 [batch_size, H, W, C], and under "label" the classes of "real", if there
    are any, int32 [batch_size]. Each side is shuffled separately, and smaller ones repeat more
    often. `process` is the index and the number of processes, which share the batches of a step.
    """
    labels, parts = sides["real"].records.labels, []
    for number, images in enumerate(sides.values()):
        side_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        order = grain.MapDataset.range(len(images.records)).seed(side_seed).shuffle().repeat()
        parts.append(order.map(lambda i, images=images: (np.int32(i), images.load(int(i)))))
    dataset = ZipMapDataset(parts).batch(batch_size, drop_remainder=True)
    # Processes take whole batches in turn, which gives them the positions of their own replicas.
    for batches in _read(dataset[process[0] :: process[1]][start:]):
        named = dict(zip(sides, batches, strict=True))
        of_real = {} if labels is None else {"label": labels[named["real"][0]].astype(np.int32)}
        yield {side: pixels for side, (_, pixels) in named.items()} | of_real


def all_batches(images: Images) -> Iterator[np.ndarray]:
    """Yields every image once, in order, uint8 [B, H, W, C]; the last batch may be smaller."""
    dataset = grain.MapDataset.range(len(images.records)).map(lambda i: images.load(int(i)))
    return _read(dataset.batch(images.batch_size))


def decode_all(images: Images, what: str) -> np.ndarray:
    """Decodes a whole set, uint8 [N, H, W, C], with a progress bar if that takes long."""
    pixels = np.empty((len(images.records), *images.shape), np.uint8)
    first, hidden = 0, not devices.is_first_process()
    with tqdm(desc=f"reading {what}", total=len(pixels), delay=2, leave=False, disable=hidden) as b:
        for part in all_batches(images):
            pixels[first : first + len(part)] = part
            first += len(part)
            b.update(len(part))
    return pixels


@contextlib.contextmanager
def feed(
    sides: Mapping[str, Images], seed: int, batch_size: int, start: int, max_steps: int
) -> Iterator[Take]:
    """Yields `take(count)` for `training.steps.repeat_steps`: `count` next batches of this process.

    These are arrays by name, [devices, max_steps, B / devices, ...], with zeros after `count`.
    """
    process, num_devices = (jax.process_index(), jax.process_count()), jax.local_device_count()
    batches = training_batches(sides, seed, batch_size, start, process)

    def stacked(parts: list[np.ndarray]) -> np.ndarray:
        size, event = len(parts[0]) // num_devices, parts[0].shape[1:]
        found = np.zeros((num_devices, max_steps, size, *event), parts[0].dtype)
        for step, part in enumerate(parts):
            found[:, step] = part.reshape(num_devices, size, *event)
        return found

    def take(count: int) -> dict[str, np.ndarray]:
        taken = [next(batches) for _ in range(count)]
        return {name: stacked([batch[name] for batch in taken]) for name in taken[0]}

    with contextlib.closing(batches):
        yield take


def _read(dataset: grain.MapDataset) -> Generator[Any]:
    # Closing stops the threads now, and not at garbage collection.
    with contextlib.closing(iter(dataset.to_iter_dataset(_READING))) as iterator:
        yield from iterator

"""Sets of images to evaluate: a folder, a zip, an .npz, or a split of a TFDS data set."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import arrays, read_arrays, read_headers, tfds, to_uint8, to_unit
from experiments.data.decode import Transform
from experiments.data.decoded import probe
from experiments.data.files import Tree
from experiments.data.records import Problems, Records
from experiments.data.stream import Reading, decode_all
from experiments.errors import DataError

_BATCH_SIZE = 1_000


class Summary(NamedTuple):
    """A summary of a set of images after one pass over it.

    Attributes:
      where: name of the set for messages.
      shape: [N, H, W, C].
      pixels: type of the pixels.
      resized: whether the images were resized.
      fingerprint: hash of the pixels; the same for a folder, a zip and an array of the same images.
    """

    where: str
    shape: tuple[int, ...]
    pixels: str
    resized: bool
    fingerprint: str


class ImageSet(NamedTuple):
    """Images in memory, of one size.

    Attributes:
      where: name of the set for messages: the path, or the split.
      pixels: uint8 [N, H, W, C], or float32 in [-1, 1] if samples were not rounded.
      resized: whether the images were resized.
    """

    where: str
    pixels: np.ndarray
    resized: bool = False

    def summarised(self) -> Summary:
        """Returns the summary with the hash of the images."""
        size = range(0, len(self.pixels), _BATCH_SIZE)
        parts = (self.pixels[first : first + _BATCH_SIZE] for first in size)
        return _summarised(self.where, parts, self.pixels.dtype)._replace(resized=self.resized)

    @property
    def unit(self) -> np.ndarray:
        """The images in [-1, 1], float32."""
        return _unit(self.pixels)

    def unit_batches(self) -> Iterator[np.ndarray]:
        """Yields the images in [-1, 1] in batches."""
        for first in range(0, len(self.pixels), _BATCH_SIZE):
            yield _unit(self.pixels[first : first + _BATCH_SIZE])


class ImageStream(NamedTuple):
    """Images that are read batch by batch, for sets that may not fit in memory.

    Attributes:
      where: name of the set for messages.
      batches: `() -> images in [-1, 1] [B, H, W, C]`, one pass.
    """

    where: str
    batches: Callable[[], Iterator[np.ndarray]]

    def unit_batches(self) -> Iterator[np.ndarray]:
        """Yields the images in [-1, 1] in batches."""
        return self.batches()

    def summarised(self) -> Summary:
        """Counts and hashes the images in one pass."""
        return _summarised(self.where, self.batches(), np.dtype(np.uint8))


def load(where: str, data_dir: str = "", image_size: int = 0) -> ImageSet:
    """Reads all images of a set, as colour images unless they are an array of grey images.

    Args:
      where: a folder or a zip of images; an .npz whose `arr_0` is uint8 [N, H, W, C], or float32
        in [-1, 1]; or tfds:NAME:SPLIT.
      data_dir: where TFDS sets are.
      image_size: side of the square to which images are resized and cropped; 0 for no change.

    Raises:
      DataError: for images that are missing, are damaged, or have different sizes.
    """
    if where.endswith(".npz") and (floats := _floats(where)) is not None:
        if image_size and floats.shape[1:3] != (image_size, image_size):
            raise DataError(f"{where}: floating-point images cannot be resized")
        return ImageSet(where, floats)
    records, channels = _open(where, data_dir)
    if not len(records):
        raise DataError(f"{where}: no images found")
    problems = Problems("stop")
    images = probe(records, Transform(image_size=image_size, channels=channels), problems)
    pixels, _ = decode_all(images, problems, Reading(), where)
    unchanged = probe(records, Transform(channels=channels), problems).shape == images.shape
    return ImageSet(where, pixels, resized=not unchanged)


def check_pair(samples: Summary, reference: Summary) -> None:
    """Checks that two sets can be compared.

    Raises:
      DataError: for images of different sizes, or fewer than two images.
    """
    for images in (samples, reference):
        if images.shape[0] < 2:
            raise DataError(f"{images.where}: expected at least 2 images")
    (height, width), other = (images.shape[1:3] for images in (samples, reference))
    if (height, width) != other:
        raise DataError(
            f"{samples.where} has images of {width} x {height} pixels, and {reference.where} has "
            f"images of {other[1]} x {other[0]}; set --image_size to resize both"
        )


def check_channels(*sets: ImageSet) -> None:
    """Checks that sets of images of one size can be compared pixel by pixel.

    Raises:
      DataError: if some are grey and others in colour.
    """
    channels = {images.where: images.pixels.shape[-1] for images in sets}
    if len(set(channels.values())) > 1:
        counts = ", ".join(f"{where} has {number}" for where, number in channels.items())
        raise DataError(f"the numbers of channels differ: {counts}")


def _summarised(where: str, batches: Iterable[np.ndarray], dtype: np.dtype[Any]) -> Summary:
    hashed, shape = hashlib.sha256(str(dtype).encode()), (0,)
    for batch in batches:
        pixels = to_uint8(batch) if dtype == np.uint8 and batch.dtype != np.uint8 else batch
        hashed.update(np.ascontiguousarray(pixels).data)
        shape = (shape[0] + len(pixels), *pixels.shape[1:])
    hashed.update(repr(shape).encode())
    return Summary(where, shape, str(dtype), False, hashed.hexdigest()[:24])


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.float32 else np.asarray(to_unit(pixels))


def _open(where: str, data_dir: str) -> tuple[Records, int]:
    if where.startswith(tfds.PREFIX):
        name, _, split = where.removeprefix(tfds.PREFIX).rpartition(":")
        if not name:
            raise DataError(f"{where}: the split is missing; write it as in tfds:cifar10:train")
        folder = tfds.find(name, data_dir)
        records = tfds.open_split(folder, split)
        if records is None:
            raise DataError(f"{folder} has no split {split!r}")
        return records, 3
    if where.endswith(".npz"):
        array, _ = arrays.open_archive(where)
        grey = array.pixels.ndim == 3 or array.pixels.shape[-1] == 1
        return array, 1 if grey else 3
    return Tree(where, Problems("stop")).records(), 3


def _floats(where: str) -> np.ndarray | None:
    """Returns the images of an .npz of floating-point numbers; `None` for any other file."""
    try:
        header = read_headers(Path(where)).get("arr_0")
        if header is None or not np.issubdtype(header.dtype, np.floating):
            return None
        array = read_arrays(Path(where), ["arr_0"])["arr_0"]
    except ValueError:  # The reader of uint8 images reports what is wrong with the file.
        return None
    if (
        array.ndim != 4
        or array.shape[-1] not in (1, 3)
        or not np.abs(array).max(initial=0.0) <= 1.0
    ):
        raise DataError(f"{where}: floating-point images must be [N, H, W, 1 or 3] in [-1, 1]")
    return array.astype(np.float32)

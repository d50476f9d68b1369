"""Sets of images from any program: a folder, a zip, an .npz, or a split of a TFDS data set."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import tfds
from experiments.data.decode import Transform, to_unit
from experiments.data.formats import Records, Tree, digest, of_pixels
from experiments.data.stream import decode_all, probe
from experiments.errors import DataError
from experiments.evaluation.inception import ImageSet
from experiments.files import read_npz

_BATCH_SIZE = 1_000


class Stored(NamedTuple):
    """All images of a set."""

    where: str  # The path, or the split.
    pixels: np.ndarray  # uint8 [N, H, W, C], or float32 in [-1, 1] if they were never rounded.

    @property
    def unit(self) -> np.ndarray:
        """The images in [-1, 1], float32."""
        return to_unit(self.pixels) if self.pixels.dtype == np.uint8 else self.pixels

    def describe(self) -> dict[str, Any]:
        """Returns what the set is, as values for JSON; the fingerprint is that of the pixels."""
        num, *size = self.pixels.shape
        return {
            "where": self.where,
            "num_images": num,
            "image_size": size,
            "pixels": str(self.pixels.dtype),
            "fingerprint": digest(self.pixels.shape, self.pixels),
        }

    def for_inception(self) -> ImageSet:
        return ImageSet(self.where, self.batches, self.pixels.dtype == np.uint8)

    def batches(self) -> Iterator[np.ndarray]:
        """Yields the images in [-1, 1], float32, in one pass."""
        for first in range(0, len(self.pixels), _BATCH_SIZE):
            yield self._replace(pixels=self.pixels[first : first + _BATCH_SIZE]).unit


def load(where: str, data_dir: str = "", image_size: int = 0) -> Stored:
    """Reads a set of at least two images, with three channels.

    It is a folder or a zip of images, an .npz whose `arr_0` is uint8 [N, H, W, C], or float32 in
    [-1, 1], or tfds:NAME:SPLIT in `data_dir`. The images are resized and cropped to a square of
    `image_size`, unless it is 0.
    """
    if (pixels := _floats(where)) is None:
        transform = Transform(image_size=image_size)
        images = probe(_open(where, data_dir), transform)
        pixels = decode_all(images, where)
    elif image_size and pixels.shape[1:3] != (image_size, image_size):
        raise DataError(f"{where}: floating-point images cannot be resized")
    if len(pixels) < 2:
        raise DataError(f"{where}: expected at least 2 images, got {len(pixels)}")
    return Stored(where, pixels)


def alike(sets: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns sets of images of equal size, with one channel if all images are grey.

    Grey images are often stored in colour, for instance the samples of a run on them.
    """
    if len({images.pixels.shape[1:3] for images in sets.values()}) > 1:
        sizes = [f"{i.where} has {i.pixels.shape[2]} x {i.pixels.shape[1]}" for i in sets.values()]
        raise DataError(f"sizes in pixels differ: {', '.join(sizes)}; set --image_size")
    every = (image for images in sets.values() for image in images.pixels)
    if any((image != image[..., :1]).any() for image in every):
        return dict(sets)
    return {name: Stored(where, pixels[..., :1]) for name, (where, pixels) in sets.items()}


def _open(where: str, data_dir: str) -> Records:
    if where.endswith(".npz"):
        return of_pixels(where, read_npz(Path(where), "arr_0")["arr_0"])
    if not where.startswith("tfds:"):
        return Tree(where).records()
    name, _, split = where.removeprefix("tfds:").rpartition(":")
    if not name:
        raise DataError(f"{where}: the split is missing; write it as in tfds:cifar10:train")
    folder = tfds.find(name, data_dir)
    if (records := tfds.open_split(folder, split)) is None:
        raise DataError(f"{folder} has no split {split!r}")
    return records


def _floats(where: str) -> np.ndarray | None:
    """Returns the images of an .npz of floating-point numbers; `None` for any other set."""
    array = read_npz(Path(where), "arr_0")["arr_0"] if where.endswith(".npz") else None
    if array is None or not np.issubdtype(array.dtype, np.floating):
        return None
    array = array.astype(np.float32)
    is_images = array.ndim == 4 and array.shape[-1] in (1, 3)
    if not (is_images and np.abs(array).max(initial=0.0) <= 1.0):
        raise DataError(f"{where}: floating-point images must be [N, H, W, 1 or 3] in [-1, 1]")
    return np.broadcast_to(array, (*array.shape[:3], 3))

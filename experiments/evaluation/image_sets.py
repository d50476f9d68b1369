"""Sets of images that are judged: a folder, a zip, an .npz, or a split of a TFDS data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import arrays, digest, read_arrays, read_headers, tfds, to_uint8, to_unit
from experiments.data.decode import Transform
from experiments.data.decoded import probe
from experiments.data.files import Tree
from experiments.data.records import Problems, Records
from experiments.data.stream import Reading, decode_all
from experiments.errors import DataError

_BATCH_SIZE = 1_000


class ImageSet(NamedTuple):
    """Images in memory, of one size.

    Attributes:
      where: what a person calls it: the path, or the split.
      pixels: uint8 [N, H, W, C]; or float32 in [-1, 1] where samples were never rounded.
      resized: whether the images were made smaller or larger to fit.
    """

    where: str
    pixels: np.ndarray
    resized: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels: the same for a folder, a zip and an array of the same images."""
        return digest(str(self.pixels.dtype), self.pixels.shape, self.pixels)

    @property
    def unit(self) -> np.ndarray:
        """The images in [-1, 1], float32."""
        return _unit(self.pixels)

    @property
    def rounded(self) -> np.ndarray:
        """The images as grey levels, uint8."""
        return self.pixels if self.pixels.dtype == np.uint8 else to_uint8(self.pixels)

    def unit_batches(self) -> Iterator[np.ndarray]:
        """Yields the images in [-1, 1], some at a time."""
        for first in range(0, len(self.pixels), _BATCH_SIZE):
            yield _unit(self.pixels[first : first + _BATCH_SIZE])


def load(where: str, data_dir: str = "", image_size: int = 0) -> ImageSet:
    """Reads all images of a set, in colour unless an array says that they are grey.

    Args:
      where: a folder or a zip of images; an .npz whose `arr_0` is uint8 [N, H, W, C], or float32
        in [-1, 1]; or tfds:NAME:SPLIT.
      data_dir: where TFDS sets are.
      image_size: side of the square that images are resized and cut to; 0 leaves them alone.

    Raises:
      DataError: for images that are missing, damaged, or of several sizes.
    """
    if where.endswith(".npz") and (floats := _floats(where)) is not None:
        if image_size and floats.shape[1:3] != (image_size, image_size):
            raise DataError(f"{where}: images of floats cannot be resized")
        return ImageSet(where, floats)
    records, channels = _open(where, data_dir)
    if not len(records):
        raise DataError(f"{where}: no image in it")
    problems = Problems("stop")
    images = probe(records, Transform(image_size=image_size, channels=channels), problems)
    pixels, _ = decode_all(images, problems, Reading(), where)
    unchanged = probe(records, Transform(channels=channels), problems).shape == images.shape
    return ImageSet(where, pixels, resized=not unchanged)


def check_pair(samples: ImageSet, reference: ImageSet) -> None:
    """Checks that two sets can be compared.

    Raises:
      DataError: for images of unequal size, or less than two of them.
    """
    (height, width), other = (images.pixels.shape[1:3] for images in (samples, reference))
    if (height, width) != other:
        raise DataError(
            f"{samples.where} has images of {width} x {height} pixels, {reference.where} of "
            f"{other[1]} x {other[0]}: give --image_size to resize both"
        )
    for images in (samples, reference):
        if len(images.pixels) < 2:
            raise DataError(f"{images.where}: at least 2 images are needed")


def check_channels(*sets: ImageSet) -> None:
    """Checks that sets of images of one size can be compared pixel by pixel.

    Raises:
      DataError: if some are grey and others in colour.
    """
    channels = {images.where: images.pixels.shape[-1] for images in sets}
    if len(set(channels.values())) > 1:
        told = ", ".join(f"{where} has {number}" for where, number in channels.items())
        raise DataError(f"numbers of channels differ: {told}")


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.float32 else np.asarray(to_unit(pixels))


def _open(where: str, data_dir: str) -> tuple[Records, int]:
    if where.startswith(tfds.PREFIX):
        name, _, split = where.removeprefix(tfds.PREFIX).rpartition(":")
        if not name:
            raise DataError(f"{where}: name the split too, as in tfds:cifar10:train")
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
    """Returns the images of an .npz that holds floats; `None` for any other file."""
    try:
        header = read_headers(Path(where)).get("arr_0")
        if header is None or not np.issubdtype(header.dtype, np.floating):
            return None
        array = read_arrays(Path(where), ["arr_0"])["arr_0"]
    except ValueError:  # The reader of uint8 images explains what is wrong with the file.
        return None
    if (
        array.ndim != 4
        or array.shape[-1] not in (1, 3)
        or not np.abs(array).max(initial=0.0) <= 1.0
    ):
        raise DataError(f"{where}: images of floats must be [N, H, W, 1 or 3] in [-1, 1]")
    return array.astype(np.float32)

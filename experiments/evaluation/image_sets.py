"""Sets of images to evaluate: a folder, a zip, an .npz, or a split of a TFDS data set."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.data import arrays, tfds, to_uint8, to_unit
from experiments.data.decode import Transform, decode
from experiments.data.decoded import probe
from experiments.data.files import Tree
from experiments.data.records import Problems, Records
from experiments.data.stream import Reading, decode_all
from experiments.errors import DataError
from experiments.files import read_arrays, read_headers

_BATCH_SIZE = 1_000


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images of one size, which are read batch by batch and may not fit in memory."""

    where: str  # Name of the set for messages: the path, or the split.
    batches: Callable[[], Iterator[np.ndarray]]  # One pass, [B, H, W, C] in [-1, 1], float32.
    pixels: str = "uint8"  # Or "float32" for samples that were never rounded.
    resized: bool = False  # Whether the images were resized.

    @property
    def unit(self) -> np.ndarray:
        """All images in [-1, 1], float32."""
        return np.concatenate(list(self.batches()))

    @functools.cached_property
    def summary(self) -> tuple[tuple[int, ...], str]:
        """The shape [N, H, W, C], and a hash of the pixels, the same in every format. One pass."""
        hashed, shape = hashlib.sha256(self.pixels.encode()), (0,)
        for batch in self.batches():
            pixels = to_uint8(batch) if self.pixels == "uint8" else batch
            hashed.update(np.ascontiguousarray(pixels).data)
            shape = (shape[0] + len(pixels), *pixels.shape[1:])
        hashed.update(repr(shape).encode())
        return shape, hashed.hexdigest()[:24]


def in_memory(where: str, pixels: np.ndarray, *, resized: bool = False) -> ImageSet:
    """Returns the set of an array: uint8 [N, H, W, C], or float32, clipped to [-1, 1]."""

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(pixels), _BATCH_SIZE):
            part = pixels[first : first + _BATCH_SIZE]
            yield to_unit(part) if part.dtype == np.uint8 else np.clip(part, -1.0, 1.0)

    return ImageSet(where, batches, str(pixels.dtype), resized)


def load(where: str, data_dir: str = "", image_size: int = 0) -> ImageSet:
    """Reads all images of a set, with one channel if all of them are grey.

    It is a folder or a zip of images, an .npz whose `arr_0` is uint8 [N, H, W, C], or float32 in
    [-1, 1], or tfds:NAME:SPLIT in `data_dir`. An array keeps its channels. The images are resized
    and cropped to a square of `image_size`, unless it is 0.

    Raises:
      DataError: for images that are missing, are damaged, or have different sizes.
    """
    if where.endswith(".npz") and (floats := _floats(where)) is not None:
        if image_size and floats.shape[1:3] != (image_size, image_size):
            raise DataError(f"{where}: floating-point images cannot be resized")
        return in_memory(where, floats)
    records, channels = _open(where, data_dir)
    if not len(records):
        raise DataError(f"{where}: no images found")
    problems = Problems("stop")
    images = probe(records, Transform(image_size=image_size, channels=channels), problems)
    pixels, _ = decode_all(images, Reading(problems), where)
    if channels and all((image == image[..., :1]).all() for image in pixels):
        pixels = pixels[..., :1]
    stored = map(images.records.read, range(len(images.records)))
    resized = image_size > 0 and any(
        decode(payload, Transform()).shape[:2] != images.shape[:2] for payload in stored
    )
    return in_memory(where, pixels, resized=resized)


def alike(sets: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """Returns sets with equal channels instead of one for grey files, if any set is in colour.

    Grey images are often stored in colour, for instance the samples of a run on them.
    """
    if all(images.summary[0][-1] == 1 for images in sets.values()):
        return dict(sets)
    return {
        name: images if images.where.endswith(".npz") else _in_colour(images)
        for name, images in sets.items()
    }


def check(*sets: ImageSet, channels: bool = False) -> None:
    """Checks that sets of images can be compared, pixel by pixel if their `channels` matter.

    Raises:
      DataError: for fewer than two images, or images of different sizes, or of different channels.
    """
    shapes = {images.where: images.summary[0] for images in sets}
    for where, (num, *_) in shapes.items():
        if num < 2:
            raise DataError(f"{where}: expected at least 2 images")
    if len({shape[1:3] for shape in shapes.values()}) > 1:
        sizes = " and ".join(f"{k} has images of {s[2]} x {s[1]} pixels" for k, s in shapes.items())
        raise DataError(f"{sizes}; set --image_size to resize them")
    if channels and len({shape[3] for shape in shapes.values()}) > 1:
        counts = ", ".join(f"{where} has {shape[3]}" for where, shape in shapes.items())
        raise DataError(f"the numbers of channels differ: {counts}")


def _in_colour(images: ImageSet) -> ImageSet:
    if images.summary[0][-1] == 3:
        return images

    def batches() -> Iterator[np.ndarray]:
        return (np.repeat(batch, 3, axis=-1) for batch in images.batches())

    return dataclasses.replace(images, batches=batches)


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
        return arrays.open_archive(where)[0], 0  # As many channels as the array has.
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
    is_images = array.ndim == 4 and array.shape[-1] in (1, 3)
    if not (is_images and np.abs(array).max(initial=0.0) <= 1.0):
        raise DataError(f"{where}: floating-point images must be [N, H, W, 1 or 3] in [-1, 1]")
    return array.astype(np.float32)

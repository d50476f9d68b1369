"""Reads arrays from `.npz` files by name; never executes content or exceeds declared sizes."""

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.records import Payload, Records, digest, printable
from experiments.errors import DataError

# Names of the arrays of images, in the order in which they are tried.
_TRAIN = ("images", "x_train", "x", "arr_0")
_HELD_OUT = ("held_out_images", "x_test")
_LABELS = {"images": "labels", "x_train": "y_train", "x": "y", "arr_0": "arr_1"}
_LABELS |= {"held_out_images": "held_out_labels", "x_test": "y_test"}
_SUFFIX = ".npy"


class Header(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Pixels:
    """Images in memory, as uint8 pixels [N, H, W] or [N, H, W, C]."""

    where: str
    pixels: np.ndarray

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Payload:
        return self.pixels[index]

    def records(self, labels: np.ndarray | None = None, classes: tuple[str, ...] = ()) -> Records:
        """Returns all images. They have no names, so their order is that of the array."""
        shape, keys = self.pixels.shape, range(len(self.pixels))
        return Records(self, keys, digest(shape), digest(shape, self.pixels), labels, classes)


def open_archive(path: str) -> tuple[Records, Records | None]:
    """Reads images, and held-out images if there are any, with their labels.

    Raises:
      DataError: if the file is missing or damaged, or has no uint8 array of images.
    """
    if not Path(path).is_file():
        raise DataError(
            f"data.dir={path} does not exist; data.name=npz needs the path of an .npz file"
        )
    try:
        headers = read_headers(Path(path))
        train = _records(path, headers, _TRAIN)
        if train is None:
            raise DataError(
                f"{path}: no array named {' or '.join(_TRAIN)}; available: {list(headers)}"
            )
        return train, _records(path, headers, _HELD_OUT)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_headers(path: Path) -> dict[str, Header]:
    """Returns shape and type of each array of a file without reading the arrays.

    Raises:
      ValueError: with only the reason, if the file is not an intact `.npz` of plain arrays.
    """
    with _opened(path) as archive:
        return {name: _header(archive, name) for name in _names(archive)}


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads only the arrays with these names.

    Raises:
      ValueError: with only the reason, if an array is missing or the `.npz` file is damaged.
    """
    with _opened(path) as archive:
        return {name: _array(archive, name) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # zipfile, zlib and NumPy raise dozens of types of errors.
        raise ValueError(f"not a readable .npz of plain arrays: {error}") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)]


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    """Reads the header of an array, and checks that the array has the size of its entry."""
    if name not in _names(archive):
        raise ValueError(f"no array named {name!r}; available: {_names(archive)}")
    info = archive.getinfo(name + _SUFFIX)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{name!r}: array format {version} is not supported")
        shape, _, dtype = read(stream)
        expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{name!r} contains objects, not numbers")
    if min(shape, default=0) < 0 or expected != info.file_size:
        raise ValueError(f"{name!r}: expected {expected:,} bytes, got {info.file_size:,}")
    return Header(shape, dtype)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    _header(archive, name)
    with archive.open(name + _SUFFIX) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _records(path: str, headers: Mapping[str, Header], names: tuple[str, ...]) -> Records | None:
    name = next((name for name in names if name in headers), None)
    if name is None:
        return None
    (shape, dtype), where = headers[name], f"{path}:{name}"
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3))):
        raise DataError(
            f"{where}: images must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], "
            f"got {dtype} {list(shape)}"
        )
    if 0 in shape[1:]:
        raise DataError(f"{where}: the images have no pixels, shape {list(shape)}")
    labels = _LABELS[name]
    if labels in headers and headers[labels].shape != shape[:1]:
        raise DataError(
            f"{where}: {shape[0]} images but labels of shape {list(headers[labels].shape)}"
        )
    arrays = read_arrays(Path(path), [name, *([labels] if labels in headers else [])])
    if labels not in headers:
        return Pixels(where, arrays[name]).records()
    # Labels that are numbers are ordered as numbers.
    values, numbers = np.unique(arrays[labels], return_inverse=True)
    classes = tuple(printable(str(value)) for value in values)
    return Pixels(where, arrays[name]).records(numbers.astype(np.int32), classes)

"""Images in the arrays of an `.npz` file, which are found by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.data.records import Payload, Records, digest, printable
from experiments.errors import DataError
from experiments.files import Header, read_arrays, read_headers

# Names of the arrays of images, in the order in which they are tried, and of their labels.
_TRAIN = {"images": "labels", "x_train": "y_train", "x": "y", "arr_0": "arr_1"}
_HELD_OUT = {"held_out_images": "held_out_labels", "x_test": "y_test"}


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


def _records(path: str, headers: Mapping[str, Header], names: dict[str, str]) -> Records | None:
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
    labels = names[name]
    if labels not in headers:
        return Pixels(where, read_arrays(Path(path), [name])[name]).records()
    if headers[labels].shape != shape[:1]:
        raise DataError(
            f"{where}: {shape[0]} images but labels of shape {list(headers[labels].shape)}"
        )
    arrays = read_arrays(Path(path), [name, labels])
    # Labels that are numbers are ordered as numbers.
    values, numbers = np.unique(arrays[labels], return_inverse=True)
    classes = tuple(printable(str(value)) for value in values)
    return Pixels(where, arrays[name]).records(numbers.astype(np.int32), classes)

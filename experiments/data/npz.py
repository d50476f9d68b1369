"""Arrays of an `.npz` file."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import npz_files
from experiments.data.records import ArrayRecords
from experiments.errors import DataError

# Names under which arrays are looked for, in this order.
_TRAIN = ("images", "x_train", "x", "arr_0")
_HELD_OUT = ("held_out_images", "x_test")
_LABELS = {"images": "labels", "x_train": "y_train", "x": "y", "arr_0": "arr_1"}
_LABELS |= {"held_out_images": "held_out_labels", "x_test": "y_test"}


def open_archive(path: str) -> tuple[ArrayRecords, ArrayRecords | None]:
    """Reads images, and held-out images if there are any, with their labels.

    Raises:
      DataError: if the file is missing or damaged, has no array of images, or not of uint8.
    """
    if not Path(path).is_file():
        raise DataError(
            f"data.dir={path} does not exist; data.name=npz needs the path of an .npz file"
        )
    try:
        arrays = npz_files.read(Path(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    train = _records(path, arrays, _TRAIN)
    if train is None:
        raise DataError(f"{path}: no array named {' or '.join(_TRAIN)}; there are {list(arrays)}")
    return train, _records(path, arrays, _HELD_OUT)


def _records(path: str, arrays: dict[str, Any], names: tuple[str, ...]) -> ArrayRecords | None:
    name = next((name for name in names if name in arrays), None)
    if name is None:
        return None
    pixels, where = arrays[name], f"{path}:{name}"
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] in (1, 3))
    ):
        raise DataError(
            f"{where}: images must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    labels = arrays.get(_LABELS[name])
    if labels is None:
        return ArrayRecords(where, pixels, None, ())
    if np.shape(labels) != (len(pixels),):
        raise DataError(f"{where}: {len(pixels)} images but labels of shape {np.shape(labels)}")
    classes, numbers = np.unique(labels, return_inverse=True)
    return ArrayRecords(where, pixels, numbers.astype(np.int32), tuple(map(str, classes)))

"""Sets of stored images that are decoded on demand."""

import contextlib
from typing import NamedTuple

import numpy as np

from experiments.data.decode import Transform, decode
from experiments.data.records import Problems, Records
from experiments.errors import DataError

MAX_CONSECUTIVE_BAD = 100  # More unreadable images in a row show that something else is wrong.
_MAX_PROBED = 100  # Images that are checked to decide whether a set is grey.
_BATCH_BYTES = 2**25  # Float32 pixels per batch in a pass over the data.


class Images(NamedTuple):
    """A set of images that are decoded on demand; all examples have one shape, [H, W, C]."""

    records: Records
    transform: Transform
    shape: tuple[int, ...]

    def load(self, index: int) -> np.ndarray:
        """Returns an example, uint8 of the shape; raises a ValueError with only the reason."""
        pixels = decode(self.records.read(index), self.transform)
        if pixels.shape[2] != self.shape[2]:
            raise ValueError("in colour, but others are grey; set data.channels to 3 or 1")
        if pixels.shape != self.shape:
            sizes = [f"{s[1]} x {s[0]}" for s in (pixels.shape, self.shape)]
            raise ValueError(f"{sizes[0]} pixels, but others have {sizes[1]}; set data.image_size")
        return pixels

    def subset(self, indices: np.ndarray) -> "Images":
        """Returns some of the images, in the order of the indices."""
        return self._replace(records=self.records.subset(indices))

    @property
    def batch_size(self) -> int:
        """Examples per batch in a pass over the set."""
        return max(1, min(1_000, _BATCH_BYTES // (4 * int(np.prod(self.shape)))))


def probe(records: Records, transform: Transform, problems: Problems) -> Images:
    """Finds the shape of the examples, from the first readable image.

    If `transform.channels` is 0, the images are in colour if any of a hundred is stored in colour.
    Grey images then get equal channels.

    Raises:
      DataError: for an unreadable image, unless such images are skipped, or if none is readable.
    """
    if not transform.channels and _any_in_colour(records):
        transform = transform._replace(channels=3)
    for index in range(min(len(records), MAX_CONSECUTIVE_BAD)):
        try:
            return Images(records, transform, decode(records.read(index), transform).shape)
        except ValueError as error:
            problems.report(records.name(index), str(error))
    if not len(records):
        raise DataError("the data contain no images")
    raise all_unreadable(records, 0)


def all_unreadable(records: Records, first: int) -> DataError:
    """Returns the error for as many unreadable images in a row as are tried."""
    num = min(len(records), MAX_CONSECUTIVE_BAD)
    return DataError(f"all {num} images from {records.name(first)} on are unreadable")


def _any_in_colour(records: Records) -> bool:
    for index in spread(len(records), _MAX_PROBED):
        with contextlib.suppress(ValueError):  # Reported when it is read for use.
            if decode(records.read(int(index)), Transform(channels=0)).shape[2] == 3:
                return True
    return False


def spread(total: int, num: int | None) -> np.ndarray:
    """Returns `num` indices spread evenly over `total`, or all: data are often sorted by class."""
    if num is None or num >= total:
        return np.arange(total)
    return np.arange(num) * total // num

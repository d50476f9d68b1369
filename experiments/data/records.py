"""Stored images by number: what every format offers to the pipeline."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Payload = bytes | np.ndarray


class Records(Protocol):
    """Images in a fixed order, read one at a time. Must pickle: worker processes get a copy."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class number of each image, [N], or `None`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty without labels."""
        ...

    @property
    def identity(self) -> str:
        """A hash of what fixes the order of the images: their names.

        A run goes on only with the same.
        """
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that changes when any image changes.

        By size and time stamp or checksum, where reading all of the data would take too long.
        """
        ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def name(self, index: int) -> str:
        """Returns how to call an image in a message: its path."""
        ...

    def read(self, index: int) -> Payload:
        """Returns an image as a file's bytes or as uint8 pixels.

        Raises:
          ValueError: with the reason alone, if it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Subset:
    """Some of other records, in an order of their own."""

    records: Records
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray | None:
        """Class number of each image."""
        labels = self.records.labels
        return None if labels is None else labels[self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.records.classes

    @property
    def identity(self) -> str:
        """Hash of the order."""
        return digest(self.records.identity, self.indices)

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        return digest(self.records.fingerprint, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Returns the image's name."""
        return self.records.name(int(self.indices[index]))

    def read(self, index: int) -> Payload:
        """Reads an image."""
        return self.records.read(int(self.indices[index]))


@dataclass(frozen=True)
class ArrayRecords:
    """Images that are in memory as pixels, uint8 [N, H, W] or [N, H, W, C]."""

    where: str
    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Hash of the order: arrays have no names, so the shape stands for them."""
        return digest(self.pixels.shape)

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        return digest(self.pixels.shape, self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Returns the array's name and the image's number."""
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Payload:
        """Returns pixels."""
        return self.pixels[index]


def digest(*parts: Any) -> str:
    """Returns a short hash of strings, numbers, lists of them and arrays."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(np.ascontiguousarray(part).data)
        else:
            total.update(repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()[:24]


def number_classes(names: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers classes by the order of their names; returns labels [N] and the names."""
    classes, labels = np.unique(np.asarray(list(names), dtype=str), return_inverse=True)
    return labels.astype(np.int32), tuple(str(c) for c in classes)

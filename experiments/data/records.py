"""Stored images by index: the interface of all formats, and the handling of bad images."""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from experiments.errors import DataError

Payload = bytes | np.ndarray
LOG = logging.getLogger("fdrl")
_OPENING = threading.Lock()


class Container(Protocol):
    """What images are read from. Instances are pickled, because worker processes get copies."""

    def name(self, key: Any) -> str:
        """Returns the name of an image for messages: its path, which `Records` makes printable."""

    def read(self, key: Any) -> Payload:
        """Returns an image as the bytes of a file or as uint8 pixels; for any thread.

        Raises:
          ValueError: with only the reason, if it cannot be read.
        """


class Lazy:
    """A container that is opened when it is first used, once in each process."""

    _opened: Any = None

    def opened(self) -> Any:
        """Returns what `_open` returned; for any thread."""
        with _OPENING:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


@dataclass(frozen=True)
class Records:
    """Images in a fixed order, read one at a time."""

    container: Container  # What they are read from.
    keys: Sequence[Any]  # The key of each image in the container.
    # Hash of the images' names, which determine their order. A run resumes only with the same hash.
    identity: str
    # Hash that changes when any image changes. It uses size and time stamp, or a checksum, if
    # reading all of the data would take too long.
    fingerprint: str
    labels: np.ndarray | None = None  # Class number of each image, [N], or `None`.
    classes: tuple[str, ...] = ()  # Names of the classes; empty without labels.

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        return printable(self.container.name(self.keys[index]))

    def read(self, index: int) -> Payload:
        """Reads an image; as `Container.read`."""
        return self.container.read(self.keys[index])

    def subset(self, indices: np.ndarray) -> "Records":
        """Returns some of the images, in the order of the indices."""
        return replace(
            self,
            keys=[self.keys[index] for index in indices.tolist()],
            identity=digest(self.identity, indices),
            fingerprint=digest(self.fingerprint, indices),
            labels=None if self.labels is None else self.labels[indices],
        )


class Problems:
    """Handles bad files by `data.on_error`: stops at the first, or skips and counts them."""

    def __init__(self, on_error: str) -> None:
        self.skip = on_error == "skip"
        self._names: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def report(self, name: str | Path, reason: str) -> None:
        """Reports a bad file.

        Raises:
          DataError: naming the file, unless such files are to be skipped.
        """
        name = printable(str(name))
        if not self.skip:
            raise DataError(f"{name}: {reason}. Fix or remove it, or set data.on_error=skip")
        if not self._names:
            LOG.warning("skipped %s: %s; further such files are only counted", name, reason)
        self._names.add(name)

    def summarise(self) -> None:
        """Logs how many files were skipped, if any."""
        if self._names:
            LOG.warning("skipped %d file(s) of the data in total", len(self._names))


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


def number_classes(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers classes in the order of their names; returns labels [N] and printable names."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    labels = np.array([numbers[name] for name in names], np.int32)
    return labels, tuple(map(printable, numbers))


def printable(name: str) -> str:
    r"""Returns a name from a file system with escapes for characters that cannot be printed.

    Bytes that are not UTF-8 become escapes such as `\xff`, control characters such as `\n`.
    """

    def escaped(character: str) -> str:
        if character.isprintable():
            return character
        if "\udc80" <= character <= "\udcff":  # Python's substitutes for undecodable bytes.
            return f"\\x{ord(character) - 0xDC00:02x}"
        return character.encode("unicode_escape").decode()

    return "".join(map(escaped, name))

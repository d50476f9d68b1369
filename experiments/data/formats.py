"""Stored images by index, for any thread. Nothing that is read can run code or write a file."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import DataError, first_line
from experiments.files import read_npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Records:
    """Images in a fixed order, read one at a time."""

    where: str  # What all names of images begin with.
    keys: Sequence[Any]  # One per image, as the rest of its name.
    fetch: Callable[[Any], bytes | np.ndarray]  # From a key: a file, or uint8 pixels.
    identity: str  # As in `Source`, without the labels.
    labels: np.ndarray | None = None  # Class number of each image, [N], or `None`.
    classes: tuple[str, ...] = ()  # Names of the classes; empty without labels.

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes | np.ndarray:
        """Returns an image as the bytes of a file or as uint8 pixels; names a bad one."""
        try:
            return self.fetch(self.keys[index])
        except Exception as error:
            raise self.bad(index, f"cannot be read: {first_line(error)}") from error

    def bad(self, index: int, reason: str) -> DataError:
        """Returns the error for a bad image, which names it."""
        name = printable(f"{self.where}{self.keys[index]}")
        return DataError(f"{name}: {reason}. Fix it, or remove it before a run is created")

    def subset(self, indices: np.ndarray) -> "Records":
        """Returns some of the images, in the order of the indices."""
        return replace(
            self,
            keys=[self.keys[index] for index in indices.tolist()],
            identity=digest(self.identity, indices),
            labels=None if self.labels is None else self.labels[indices],
        )


class _File(NamedTuple):
    key: str  # Its path below the root.
    stamp: int  # Its size or checksum.
    parts: tuple[str, ...]  # Of the path.


class Tree:
    """The image files in a folder or zip. A folder that contains all others is not a class."""

    def __init__(self, root: str) -> None:
        """Lists a folder or a zip, which is read in place and never extracted."""
        if not os.path.exists(root):
            raise DataError(f"{root} does not exist; it must be a folder or a zip of images")
        if os.path.isdir(root):
            files = sorted(_files_of_folder(root))
            self._where, self._fetch = f"{root}/", lambda key: Path(root, key).read_bytes()
        else:
            try:
                archive = zipfile.ZipFile(root)
            except Exception as error:  # A damaged directory can raise many types of errors.
                raise DataError(f"{root}: not a readable zip: {error}") from error
            files = sorted(_files_of_zip(archive))
            self._where, self._fetch = f"{root}:", archive.read  # It checks checksums.
        images = [file for file in files if file.key.lower().endswith(SUFFIXES)]
        if not images:
            raise DataError(f"{root}: no images found; images are {', '.join(SUFFIXES)}")
        if others := [file.key for file in files if not file.key.lower().endswith(SUFFIXES)]:
            _warn(
                f"{root}: skipped {len(others)} file(s), not PNG, JPEG or WebP, such as {others[0]}"
            )
        if all(len(file.parts) > 2 and file.parts[0] == images[0].parts[0] for file in images):
            images = [file._replace(parts=file.parts[1:]) for file in images]
        self._images = images
        self.parts = {file.parts[0] for file in images if len(file.parts) > 1}  # Top folders.

    def records(self, part: str | None = None) -> Records:
        """Returns all images, or those in a part; the folders of all images are their classes."""
        depth, images = 0, self._images
        if part is not None:
            depth, images = 1, [f for f in images if len(f.parts) > 1 and f.parts[0] == part]
        loose = [file.key for file in images if len(file.parts) == depth + 1]
        labels, classes = None, tuple[str, ...]()
        if not loose:
            names, labels = np.unique([file.parts[depth] for file in images], return_inverse=True)
            labels, classes = labels.astype(np.int32), tuple(map(printable, names.tolist()))
        elif len(loose) < len(images):
            _warn(f"{self._where} has sub-folders that are not classes, because of {loose[0]}")
        keys = [file.key for file in images]
        identity = digest([(file.key, file.stamp) for file in images])
        return Records(self._where, keys, self._fetch, identity, labels, classes)


def _files_of_folder(root: str) -> Iterator[_File]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if not _is_hidden(name):
                path = Path(folder, name)
                below = path.relative_to(root)
                yield _File(below.as_posix(), path.stat().st_size, below.parts)


def _files_of_zip(archive: zipfile.ZipFile) -> Iterator[_File]:
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if not info.is_dir() and not any(map(_is_hidden, parts)):
            yield _File(info.filename, info.CRC, parts)


def _is_hidden(name: str) -> bool:
    return name == "__MACOSX" or name.startswith(".")


def _warn(message: str) -> None:
    logging.getLogger("fdrl").warning("%s", printable(message))


def open_npz(path: str) -> tuple[Records, Records | None]:
    """Reads the arrays "images" and, if they are there, "labels" and the same "held_out_"."""
    arrays = read_npz(Path(path))
    if "images" not in arrays:
        raise DataError(f"{path}: no array named images; available: {', '.join(arrays)}")

    def records(prefix: str) -> Records:
        pixels, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
        where, shape = f"{path}:{prefix}images", pixels.shape
        if pixels.dtype != np.uint8 or not (len(shape) == 3 or shape[3:] in ((1,), (3,))):
            allowed = "images must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
            raise DataError(f"{where}: {allowed}, got {pixels.dtype} {list(shape)}")
        if labels is None:
            return of_pixels(where, pixels)
        if labels.shape != shape[:1]:
            raise DataError(f"{where}: {shape[0]} images but labels of shape {list(labels.shape)}")
        values, numbers = np.unique(labels, return_inverse=True)  # Numbers are sorted as numbers.
        classes = tuple(printable(str(value)) for value in values)
        return of_pixels(where, pixels, numbers.astype(np.int32), classes)

    return records(""), records("held_out_") if "held_out_images" in arrays else None


def of_pixels(
    where: str, pixels: np.ndarray, labels: np.ndarray | None = None, classes: tuple[str, ...] = ()
) -> Records:
    """Returns images in memory, uint8 [N, H, W] or [N, H, W, C]."""
    content, keys = digest(pixels.shape, pixels), range(len(pixels))
    return Records(f"{where}:", keys, pixels.__getitem__, content, labels, classes)


def digest(*parts: Any) -> str:
    """Returns a short hash of strings, numbers, lists of them and arrays."""
    total = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        total.update(np.ascontiguousarray(part).data if is_array else repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()[:24]


def printable(name: str) -> str:
    r"""Returns a name with escapes such as `\n` for what a terminal must not get."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

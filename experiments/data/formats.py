"""Stored images by index: folders, zip archives and `.npz` files.

They may be read by any thread. Nothing that is read can run code or write a file.
"""

import hashlib
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import DataError, first_line
from experiments.files import Header, read_headers, read_npz

Payload = bytes | np.ndarray
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**28
# Names of the arrays of images, in the order in which they are tried, and of their labels.
_TRAIN = {"images": "labels", "x_train": "y_train", "x": "y", "arr_0": "arr_1"}
_HELD_OUT = {"held_out_images": "held_out_labels", "x_test": "y_test"}


@dataclass(frozen=True)
class Records:
    """Images in a fixed order, read one at a time."""

    where: str  # What all names of images begin with.
    keys: Sequence[Any]  # One per image, as the rest of its name.
    # `key -> the bytes of a file, or uint8 pixels`; for any thread. May raise any error.
    fetch: Callable[[Any], Payload]
    identity: str  # As in `Source`, without the labels.
    fingerprint: str  # As in `Source`.
    labels: np.ndarray | None = None  # Class number of each image, [N], or `None`.
    classes: tuple[str, ...] = ()  # Names of the classes; empty without labels.

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Payload:
        """Returns an image as the bytes of a file or as uint8 pixels."""
        try:
            return self.fetch(self.keys[index])
        except Exception as error:
            raise self.bad(index, f"cannot be read: {first_line(error)}") from error

    def bad(self, index: int, reason: str) -> DataError:
        """Returns the error for a bad image, which names it."""
        return _bad(f"{self.where}{self.keys[index]}", reason)

    def subset(self, indices: np.ndarray) -> "Records":
        """Returns some of the images, in the order of the indices."""
        return replace(
            self,
            keys=[self.keys[index] for index in indices.tolist()],
            identity=digest(self.identity, indices),
            fingerprint=digest(self.fingerprint, indices),
            labels=None if self.labels is None else self.labels[indices],
        )


class _File(NamedTuple):
    key: str  # Its path below the root.
    stamp: tuple[int, ...]  # Changes with its content; its size comes first.
    parts: tuple[str, ...]  # Of the path.


class Tree:
    """The image files in a folder or zip. A folder that contains all others is not a class."""

    def __init__(self, root: str) -> None:
        """Lists a folder or a zip, which is read in place and never extracted."""
        if not os.path.exists(root):
            raise DataError(f"{root} does not exist; it must be a folder or a zip of images")
        folder = Path(root)
        if folder.is_dir():
            found = _files_of_folder(folder, folder, ())
            self._where, self._fetch = f"{root}/", lambda key: (folder / key).read_bytes()
        else:
            try:
                archive = zipfile.ZipFile(root)
            except Exception as error:  # A damaged directory can raise many types of errors.
                raise DataError(f"{root}: not a readable zip: {error}") from error
            found = _files_of_zip(archive)
            self._where, self._fetch = f"{root}:", archive.read  # It checks checksums.
        images: list[_File] = []
        others: list[_File] = []
        for file in sorted(found):
            (images if file.parts[-1].lower().endswith(SUFFIXES) else others).append(file)
        if not images:
            raise DataError(f"{root}: no images found; images are {', '.join(SUFFIXES)}")
        if others:
            message = "%s: ignored %d file(s) that are not PNG, JPEG or WebP, such as %s"
            shown = printable(root), len(others), printable(others[0].key)
            logging.getLogger("fdrl").warning(message, *shown)
        for file in images:
            if file.stamp[0] > MAX_FILE_BYTES:
                reason = f"{file.stamp[0]:,} bytes, too large for an image"
                raise _bad(f"{self._where}{file.key}", reason)
        top = images[0].parts[0]
        if all(len(file.parts) > 2 and file.parts[0] == top for file in images):
            images = [file._replace(parts=file.parts[1:]) for file in images]
        self._images = images

    def parts(self) -> set[str]:
        """Returns the names of the folders at the top."""
        return {file.parts[0] for file in self._images if len(file.parts) > 1}

    def records(self, part: str | None = None) -> Records:
        """Returns all images, or those in one of the `parts`.

        If each image is in a folder below that, these folders are the classes.
        """
        depth = 0 if part is None else 1
        images = [file for file in self._images if not depth or file.parts[0] == part]
        images = [file for file in images if len(file.parts) > depth]
        labels, classes = None, tuple[str, ...]()
        if all(len(file.parts) > depth + 1 for file in images):
            folders = [file.parts[depth] for file in images]
            numbers = {name: number for number, name in enumerate(sorted(set(folders)))}
            labels = np.array([numbers[folder] for folder in folders], np.int32)
            classes = tuple(map(printable, numbers))
        elif any(len(file.parts) > depth + 1 for file in images):
            loose = next(file.key for file in images if len(file.parts) == depth + 1)
            logging.getLogger("fdrl").warning(
                "%s: sub-folders are not classes, because %s is in none of them",
                printable(self._where.removesuffix(":")),
                printable(loose),
            )
        keys = [file.key for file in images]
        stamps = digest([(file.key, file.stamp) for file in images])
        return Records(self._where, keys, self._fetch, digest(keys), stamps, labels, classes)


def _files_of_folder(root: Path, folder: Path, above: tuple[str, ...]) -> Iterator[_File]:
    """Walks a folder and follows links."""
    real = os.path.realpath(folder)
    if real in above:
        raise _bad(str(folder), "a link to a folder that contains it (a cycle)")
    for child in sorted(folder.iterdir()):
        if _is_hidden(child.name):
            continue
        try:
            status = child.stat()
        except OSError as error:
            raise _bad(str(child), f"cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            yield from _files_of_folder(root, child, (*above, real))
        elif not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for ever.
            raise _bad(str(child), "not a regular file")
        else:
            path = child.relative_to(root)
            yield _File(path.as_posix(), (status.st_size, status.st_mtime_ns), path.parts)


def _files_of_zip(archive: zipfile.ZipFile) -> Iterator[_File]:
    for info in archive.infolist():
        path = info.filename.replace("\\", "/")  # Some programs of Windows write these.
        parts = PurePosixPath(path).parts
        if not path.endswith("/") and not any(map(_is_hidden, parts)):
            yield _File(info.filename, (info.file_size, info.CRC), parts)


def _is_hidden(name: str) -> bool:
    return name == "__MACOSX" or (name.startswith(".") and name != "..")


def open_images(path: str) -> Records:
    """Opens all images of a folder or a zip, or those of an `.npz`."""
    return open_archive(path)[0] if path.endswith(".npz") else Tree(path).records()


def open_archive(path: str) -> tuple[Records, Records | None]:
    """Reads the images of an `.npz`, and held-out images if there are any, with their labels."""
    headers = read_headers(Path(path))
    train = _of_arrays(path, headers, _TRAIN)
    if train is None:
        raise DataError(f"{path}: no array named {' or '.join(_TRAIN)}; available: {list(headers)}")
    return train, _of_arrays(path, headers, _HELD_OUT)


def _of_arrays(path: str, headers: dict[str, Header], names: dict[str, str]) -> Records | None:
    name = next((name for name in names if name in headers), None)
    if name is None:
        return None
    (shape, dtype), where = headers[name], f"{path}:{name}"
    if dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3))):
        raise DataError(
            f"{where}: images must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], "
            f"got {dtype} {list(shape)}"
        )
    numbers, classes = None, tuple[str, ...]()

    def read(array: str) -> np.ndarray:
        return read_npz(Path(path), array)[array]

    if (labels := names[name]) in headers:
        if headers[labels][0] != shape[:1]:
            raise DataError(
                f"{where}: {shape[0]} images but labels of shape {list(headers[labels][0])}"
            )
        # Labels that are numbers are ordered as numbers.
        values, inverse = np.unique(read(labels), return_inverse=True)
        numbers, classes = inverse.astype(np.int32), tuple(printable(str(v)) for v in values)
    return of_pixels(where, read(name), numbers, classes)


def of_pixels(
    where: str, pixels: np.ndarray, labels: np.ndarray | None = None, classes: tuple[str, ...] = ()
) -> Records:
    """Returns images in memory, uint8 [N, H, W] or [N, H, W, C]."""
    content = digest(pixels.shape, pixels)
    fetch = pixels.__getitem__
    return Records(f"{where}:", range(len(pixels)), fetch, content, content, labels, classes)


def _bad(name: str, reason: str) -> DataError:
    return DataError(f"{printable(name)}: {reason}. Fix it, or remove it before a run is created")


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


def printable(name: str) -> str:
    r"""Returns a file name with escapes such as `\xff` or `\n` for what cannot be printed."""

    def escaped(character: str) -> str:
        if character.isprintable():
            return character
        if "\udc80" <= character <= "\udcff":  # Python's substitutes for undecodable bytes.
            return f"\\x{ord(character) - 0xDC00:02x}"
        return character.encode("unicode_escape").decode()

    return "".join(map(escaped, name))

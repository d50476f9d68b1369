"""Stored images by index: folders, zip archives and `.npz` files.

Containers may be read by any thread. Nothing that is read can run code or write a file.
"""

import hashlib
import io
import logging
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.errors import DataError, first_line

Payload = bytes | np.ndarray
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**28
_LOG = logging.getLogger("fdrl")
# Files that operating systems create in folders.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")
# Names of the arrays of images, in the order in which they are tried, and of their labels.
_TRAIN = {"images": "labels", "x_train": "y_train", "x": "y", "arr_0": "arr_1"}
_HELD_OUT = {"held_out_images": "held_out_labels", "x_test": "y_test"}


class Container(Protocol):
    """What images are read from."""

    def name(self, key: Any) -> str:
        """Returns the name of an image for messages: its path, which `Records` makes printable."""

    def read(self, key: Any) -> Payload:
        """Returns an image as the bytes of a file or as uint8 pixels.

        Raises:
          ValueError: with only the reason, if it cannot be read.
        """


@dataclass(frozen=True)
class Records:
    """Images in a fixed order, read one at a time."""

    container: Container
    keys: Sequence[Any]  # The key of each image in the container.
    identity: str  # As in `Source`, without the labels.
    fingerprint: str  # As in `Source`.
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


class _Entry(NamedTuple):
    """An image file: its path below the root, and a value that changes with its content."""

    path: str
    stamp: tuple[int, ...]


_Placed = tuple[tuple[str, ...], _Entry]  # Folders and name of an image file, and the file.


@dataclass(frozen=True)
class Folder:
    """A folder on disk."""

    root: str

    def name(self, path: str) -> str:
        return f"{self.root}/{path}"

    def read(self, path: str) -> bytes:
        try:
            return (Path(self.root) / path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error

    def entries(self, others: list[str]) -> Iterator[_Placed]:
        """Walks the folder and follows links; adds files that are not images to `others`."""
        yield from self._walk(Path(self.root), (), others)

    def _walk(self, folder: Path, above: tuple[str, ...], others: list[str]) -> Iterator[_Placed]:
        real = os.path.realpath(folder)
        if real in above:
            raise bad(folder, "a link to a folder that contains it (a cycle)")
        for child in sorted(folder.iterdir()):
            if _is_litter(child.name):
                continue
            try:
                status = child.stat()
            except OSError as error:
                raise bad(child, f"cannot be read: {error.strerror}") from error
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(child, (*above, real), others)
            elif child.suffix.lower() not in SUFFIXES:
                others.append(str(child))
            elif not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for ever.
                raise bad(child, "not a regular file")
            elif status.st_size > MAX_FILE_BYTES:
                raise bad(child, f"{status.st_size:,} bytes, too large for an image")
            else:
                path = child.relative_to(self.root)
                yield path.parts, _Entry(path.as_posix(), (status.st_size, status.st_mtime_ns))


class ZipArchive:
    """A zip archive. It is read in place and never extracted."""

    def __init__(self, root: str) -> None:
        self.root = root
        try:
            self._archive = zipfile.ZipFile(root)
        except Exception as error:  # A damaged directory can raise many types of errors.
            raise DataError(f"{root}: not a readable zip: {error}") from error

    def name(self, path: str) -> str:
        return f"{self.root}:{path}"

    def read(self, path: str) -> bytes:
        """Reads an entry and checks its checksum."""
        try:
            # Reads in pieces into one buffer, because `ZipFile.read` needs twice the memory.
            buffer = io.BytesIO()
            with self._archive.open(path) as stream:
                shutil.copyfileobj(stream, buffer)
            return buffer.getvalue()
        except Exception as error:  # zipfile and zlib raise their own types of errors.
            raise ValueError(f"cannot be read: {error}") from error

    def entries(self, others: list[str]) -> Iterator[_Placed]:
        """Lists the archive; adds files that are not images to `others`."""
        seen: set[str] = set()
        for info in self._archive.infolist():
            shown = info.filename.replace("\\", "/")  # Some programs of Windows write these.
            path = PurePosixPath(shown)
            if any(_is_litter(part) for part in path.parts if part != ".."):
                continue
            name = f"{self.root}:{info.filename!r}"
            if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise bad(name, "the path leads out of the archive")
            if shown.endswith("/"):
                continue
            if path.suffix.lower() not in SUFFIXES:
                others.append(name)
                continue
            if info.filename in seen:
                raise bad(name, "the name occurs twice in the archive")
            if info.flag_bits & 1:
                raise bad(name, "encrypted")
            if info.file_size > MAX_FILE_BYTES:
                raise bad(name, f"{info.file_size:,} bytes when unpacked, too large")
            seen.add(info.filename)
            yield path.parts, _Entry(info.filename, (info.file_size, info.CRC))


class Tree:
    """The image files in a folder or zip. A folder that contains all others is not a class."""

    def __init__(self, root: str) -> None:
        """Lists a folder or a zip.

        Raises:
          DataError: if it does not exist, has no images, or has a bad file.
        """
        if not os.path.exists(root):
            raise DataError(
                f"data.dir={root} does not exist or cannot be opened; it must be a folder or a zip "
                "of images"
            )
        self._container = Folder(root) if Path(root).is_dir() else ZipArchive(root)
        others: list[str] = []
        images = sorted(self._container.entries(others), key=lambda image: image[1])
        if not images:
            ignored = f" ({len(others)} other file(s))" if others else ""
            raise DataError(f"{root}: no images found{ignored}; images are {', '.join(SUFFIXES)}")
        if others:
            example = ("such as " if len(others) > 1 else "") + printable(others[0])
            message = "%s: ignored %d file(s) that are not PNG, JPEG or WebP, %s"
            _LOG.warning(message, printable(root), len(others), example)
        top = images[0][0][0]
        is_nested = all(len(path) > 2 and path[0] == top for path, _ in images)
        self._images = [(path[1:], entry) for path, entry in images] if is_nested else images

    def parts(self) -> set[str]:
        """Returns the names of the folders at the top."""
        return {path[0] for path, _ in self._images if len(path) > 1}

    def records(self, part: str | None = None) -> Records:
        """Returns all images, or those in one of the `parts`.

        If each image is in a folder below that, these folders are the classes.
        """
        images = self._images
        if part is not None:
            images = [(p[1:], e) for p, e in images if len(p) > 1 and p[0] == part]
        labels, classes = None, tuple[str, ...]()
        if all(len(path) > 1 for path, _ in images):
            folders = [path[0] for path, _ in images]
            names = sorted(set(folders))
            labels = np.array([names.index(folder) for folder in folders], np.int32)
            classes = tuple(map(printable, names))
        entries = [entry for _, entry in images]
        keys = [entry.path for entry in entries]
        return Records(self._container, keys, digest(keys), digest(entries), labels, classes)


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
        """Returns all images in the order of the array."""
        content = digest(self.pixels.shape, self.pixels)
        return Records(self, range(len(self.pixels)), content, content, labels, classes)


class Header(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_headers(path: str) -> dict[str, Header]:
    """Returns shape and type of each array of an `.npz` file without reading the arrays.

    Raises:
      ValueError: if it is not an intact `.npz` of plain arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _header(archive, name) for name in names}
    except Exception as error:  # zipfile, zlib and NumPy raise dozens of types of errors.
        raise ValueError(f"not a readable .npz of plain arrays: {error}") from error


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        expected = stream.tell() + math.prod(shape) * dtype.itemsize
    found = archive.getinfo(name).file_size
    if dtype.hasobject:
        raise ValueError(f"{name!r} contains objects, not numbers")
    # NumPy would allocate what the header declares before it notices that there is less.
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(f"{name!r}: expected {expected:,} bytes, got {found:,}")
    return Header(shape, dtype)


def open_archive(path: str) -> tuple[Records, Records | None]:
    """Reads the images of an `.npz`, and held-out images if there are any, with their labels.

    Raises:
      DataError: if the file is missing or damaged, or has no uint8 array of images.
    """
    if not Path(path).is_file():
        raise DataError(
            f"data.dir={path} does not exist; data.name=npz needs the path of an .npz file"
        )
    try:
        headers = read_headers(path)
        train = _of_arrays(path, headers, _TRAIN)
        if train is None:
            raise DataError(
                f"{path}: no array named {' or '.join(_TRAIN)}; available: {list(headers)}"
            )
        return train, _of_arrays(path, headers, _HELD_OUT)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_array(path: str, name: str) -> np.ndarray:
    """Reads one array of an `.npz` whose header `read_headers` has checked.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except Exception as error:  # As in `read_headers`.
        raise ValueError(f"{name!r} cannot be read: {first_line(error)}") from error


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
    labels = names[name]
    if labels not in headers:
        return Pixels(where, read_array(path, name)).records()
    if headers[labels].shape != shape[:1]:
        raise DataError(
            f"{where}: {shape[0]} images but labels of shape {list(headers[labels].shape)}"
        )
    # Labels that are numbers are ordered as numbers.
    values, numbers = np.unique(read_array(path, labels), return_inverse=True)
    classes = tuple(printable(str(value)) for value in values)
    return Pixels(where, read_array(path, name)).records(numbers.astype(np.int32), classes)


def bad(name: str | Path, reason: str) -> DataError:
    """Returns the error for a bad file, which is named."""
    return DataError(f"{printable(str(name))}: {reason}. Fix or remove it")


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


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER

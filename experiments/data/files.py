"""Folders and zips of images; sub-folders are classes."""

import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from experiments.data.problems import Problems
from experiments.data.records import digest, number_classes
from experiments.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**28
# What operating systems leave in folders without being asked.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")


class Entry(NamedTuple):
    """An image file: path below the root with "/" between parts, and what changes with content."""

    path: str
    stamp: tuple[int, ...]


@dataclass
class Folder:
    """A folder on disk."""

    root: str

    def entries(self, problems: Problems) -> Iterator[Entry]:
        """Walks the folder, following links."""
        yield from self._walk(Path(self.root), (), problems)

    def read(self, path: str) -> bytes:
        """Reads a file."""
        try:
            return (Path(self.root) / path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error

    def _walk(self, folder: Path, above: tuple[str, ...], problems: Problems) -> Iterator[Entry]:
        real = os.path.realpath(folder)
        if real in above:
            problems.report(str(folder), "a link to a folder that holds it, which has no end")
            return
        try:
            children = sorted(folder.iterdir())
        except OSError as error:
            problems.report(str(folder), f"the folder cannot be read: {error.strerror}")
            return
        for child in children:
            if _is_litter(child.name):
                continue
            try:
                status = child.stat()
            except OSError as error:
                problems.report(str(child), f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(child, (*above, real), problems)
            elif reason := _objection(child.name, status):
                problems.report(str(child), reason)
            else:
                path = child.relative_to(self.root).as_posix()
                yield Entry(path, (status.st_size, status.st_mtime_ns))


@dataclass
class ZipArchive:
    """A zip. It is read in place and never extracted."""

    root: str
    _open: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)

    def entries(self, problems: Problems) -> Iterator[Entry]:
        """Lists the archive; names that point outside of it, and names given twice, are refused."""
        seen: set[str] = set()
        for info in self._archive().infolist():
            path = PurePosixPath(info.filename.replace("\\", "/"))
            if any(_is_litter(part) for part in path.parts if part != ".."):
                continue
            name = f"{self.root}:{info.filename!r}"
            if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                problems.report(name, "the path leads out of the archive")
            elif info.is_dir():
                continue
            elif info.filename in seen:
                problems.report(name, "the name occurs twice in the archive")
            elif path.suffix.lower() not in SUFFIXES:
                problems.report(name, _no_image())
            elif info.flag_bits & 1:
                problems.report(name, "encrypted")
            elif info.file_size > MAX_FILE_BYTES:
                problems.report(name, f"{info.file_size:,} bytes when unpacked, too large")
            else:
                seen.add(info.filename)
                yield Entry(info.filename, (info.file_size, info.CRC))

    def read(self, path: str) -> bytes:
        """Reads an entry and checks its checksum."""
        try:
            return self._archive().read(path)
        except Exception as error:  # zipfile and zlib have errors of their own.
            raise ValueError(f"cannot be read: {error}") from error

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None:
            try:
                self._open = zipfile.ZipFile(self.root)
            except Exception as error:  # A damaged directory has errors of many kinds.
                raise DataError(f"{self.root}: no readable zip: {error}") from error
        return self._open

    def __getstate__(self) -> dict[str, Any]:
        # Each worker process opens the file for itself.
        return {"root": self.root, "_open": None}


@dataclass(frozen=True)
class FileRecords:
    """Image files of a folder or a zip."""

    container: Folder | ZipArchive
    entries: list[Entry]
    labels: np.ndarray | None
    classes: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Hash of the names."""
        return digest([entry.path for entry in self.entries])

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, and time stamps (of files) or checksums (in a zip)."""
        return digest(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """Returns the file's path."""
        join = ":" if isinstance(self.container, ZipArchive) else "/"
        return f"{self.container.root}{join}{self.entries[index].path}"

    def read(self, index: int) -> bytes:
        """Reads a file."""
        return self.container.read(self.entries[index].path)


class Tree:
    """The image files below a root, with the folder that holds everything else taken off."""

    def __init__(self, root: str, problems: Problems) -> None:
        """Lists a folder or a zip.

        Raises:
          DataError: if it does not exist, has no image, or (unless skipped) holds anything else.
        """
        if not Path(root).exists():
            raise DataError(
                f"data.dir={root} does not exist; it must be a folder or a zip of images"
            )
        self.root = root
        self._container = Folder(root) if Path(root).is_dir() else ZipArchive(root)
        self._entries = sorted(self._container.entries(problems))
        if not self._entries:
            left_out = f" ({len(problems)} file(s) skipped)" if len(problems) else ""
            raise DataError(f"{root}: no image in it{left_out}; images are {', '.join(SUFFIXES)}")
        heads = {PurePosixPath(e.path).parts[0] for e in self._entries}
        nested = all(len(PurePosixPath(e.path).parts) > 2 for e in self._entries)
        self._depth = 1 if len(heads) == 1 and nested else 0

    def parts(self) -> set[str]:
        """Returns the names of the folders at the top."""
        paths = (self._parts(entry) for entry in self._entries)
        return {parts[0] for parts in paths if len(parts) > 1}

    def records(self, part: str | None = None) -> FileRecords:
        """Returns all images, or those in one of the `parts`.

        If each lies in a folder below that, these folders are the classes.
        """
        entries, tails = [], []
        for entry in self._entries:
            parts = self._parts(entry)
            if part is None or (len(parts) > 1 and parts[0] == part):
                entries.append(entry)
                tails.append(parts if part is None else parts[1:])
        labelled = all(len(tail) > 1 for tail in tails)
        labels, classes = number_classes(t[0] for t in tails) if labelled else (None, ())
        return FileRecords(self._container, entries, labels, classes)

    def _parts(self, entry: Entry) -> tuple[str, ...]:
        return PurePosixPath(entry.path).parts[self._depth :]


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _objection(name: str, status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"  # Opening a pipe would wait for ever.
    if Path(name).suffix.lower() not in SUFFIXES:
        return _no_image()
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size:,} bytes, too large for an image"
    return None


def _no_image() -> str:
    return f"not an image by its name ({', '.join(SUFFIXES)})"

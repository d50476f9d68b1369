"""Folders and zips of images; sub-folders are classes."""

import io
import os
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from experiments.data.records import (
    Problems,
    digest,
    log_other_files,
    number_classes,
    printable,
)
from experiments.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**28
# What operating systems leave in folders without being asked.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")
_OPENING = threading.Lock()


class Entry(NamedTuple):
    """An image file: path below the root with "/" between parts, and what changes with content."""

    path: str
    stamp: tuple[int, ...]


@dataclass
class Folder:
    """A folder on disk."""

    root: str

    def entries(self, problems: Problems, others: list[str]) -> Iterator[Entry]:
        """Walks the folder, following links; `others` gets the files that are no images."""
        yield from self._walk(Path(self.root), (), problems, others)

    def read(self, path: str) -> bytes:
        """Reads a file."""
        try:
            return (Path(self.root) / path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error

    def _walk(
        self, folder: Path, above: tuple[str, ...], problems: Problems, others: list[str]
    ) -> Iterator[Entry]:
        real = os.path.realpath(folder)
        if real in above:
            problems.report(_shown(folder), "a link to a folder that holds it, which has no end")
            return
        try:
            children = sorted(folder.iterdir())
        except OSError as error:
            problems.report(_shown(folder), f"the folder cannot be read: {error.strerror}")
            return
        for child in children:
            if _is_litter(child.name):
                continue
            try:
                status = child.stat()
            except OSError as error:
                problems.report(_shown(child), f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(child, (*above, real), problems, others)
            elif child.suffix.lower() not in SUFFIXES:
                others.append(_shown(child))
            elif reason := _objection(status):
                problems.report(_shown(child), reason)
            else:
                path = child.relative_to(self.root).as_posix()
                yield Entry(path, (status.st_size, status.st_mtime_ns))


@dataclass
class ZipArchive:
    """A zip. It is read in place and never extracted."""

    root: str
    _open: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)

    def entries(self, problems: Problems, others: list[str]) -> Iterator[Entry]:
        """Lists the archive; names that point outside of it, and names given twice, are refused.

        `others` gets the files that are no images by their names.
        """
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
            elif path.suffix.lower() not in SUFFIXES:
                others.append(name)
            elif info.filename in seen:
                problems.report(name, "the name occurs twice in the archive")
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
            # In pieces into one buffer: `ZipFile.read` needs the memory of two.
            buffer = io.BytesIO()
            with self._archive().open(path) as stream:
                shutil.copyfileobj(stream, buffer)
            return buffer.getvalue()
        except Exception as error:  # zipfile and zlib have errors of their own.
            raise ValueError(f"cannot be read: {error}") from error

    def _archive(self) -> zipfile.ZipFile:
        with _OPENING:
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
        return printable(f"{self.container.root}{join}{self.entries[index].path}")

    def read(self, index: int) -> bytes:
        """Reads a file."""
        return self.container.read(self.entries[index].path)


class Tree:
    """The image files below a root; a folder that holds all others does not count as a class."""

    def __init__(self, root: str, problems: Problems) -> None:
        """Lists a folder or a zip.

        Raises:
          DataError: if it does not exist, has no image, or (unless skipped) holds a bad one.
        """
        if reason := _missing(root):
            raise DataError(
                f"data.dir={printable(root)} {reason}; it must be a folder or a zip of images"
            )
        self.root = root
        self._container = Folder(root) if Path(root).is_dir() else ZipArchive(root)
        others: list[str] = []
        self._entries = sorted(self._container.entries(problems, others))
        if not self._entries:
            num = len(problems) + len(others)
            skipped = f" ({num} file(s) skipped)" if num else ""
            raise DataError(f"{root}: no image in it{skipped}; images are {', '.join(SUFFIXES)}")
        log_other_files(root, others)
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


def _missing(root: str) -> str:
    """Returns why there is nothing at a path; an empty text if there is something."""
    try:
        Path(root).stat()
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:  # A name that is too long, or a folder that may not be entered.
        return f"cannot be opened ({error.strerror})"
    except ValueError as error:
        return f"is no path ({error})"
    return ""


def _objection(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"  # Opening a pipe would wait for ever.
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size:,} bytes, too large for an image"
    return None


def _shown(path: Path) -> str:
    return printable(str(path))

"""Folders and zip archives of images; sub-folders are classes."""

import io
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from experiments.data.records import LOG, Lazy, Problems, Records, digest, number_classes, printable
from experiments.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_BYTES = 2**28
# Files that operating systems create in folders.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")


class Entry(NamedTuple):
    """An image file: its path below the root, and a value that changes with its content."""

    path: str
    stamp: tuple[int, ...]


Placed = tuple[tuple[str, ...], Entry]  # The folders and the name of an image file, and the file.


@dataclass
class Folder:
    """A folder on disk."""

    root: str

    def name(self, path: str) -> str:
        return f"{self.root}/{path}"

    def entries(self, problems: Problems, others: list[str]) -> Iterator[Placed]:
        """Walks the folder and follows links; adds files that are not images to `others`."""
        yield from self._walk(Path(self.root), (), problems, others)

    def read(self, path: str) -> bytes:
        try:
            return (Path(self.root) / path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error

    def _walk(
        self, folder: Path, above: tuple[str, ...], problems: Problems, others: list[str]
    ) -> Iterator[Placed]:
        real = os.path.realpath(folder)
        if real in above:
            problems.report(folder, "a link to a folder that contains it (a cycle)")
            return
        try:
            children = sorted(folder.iterdir())
        except OSError as error:
            problems.report(folder, f"the folder cannot be read: {error.strerror}")
            return
        for child in children:
            if _is_litter(child.name):
                continue
            try:
                status = child.stat()
            except OSError as error:
                problems.report(child, f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(child, (*above, real), problems, others)
            elif child.suffix.lower() not in SUFFIXES:
                others.append(str(child))
            elif not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for ever.
                problems.report(child, "not a regular file")
            elif status.st_size > MAX_FILE_BYTES:
                problems.report(child, f"{status.st_size:,} bytes, too large for an image")
            else:
                path = child.relative_to(self.root)
                yield path.parts, Entry(path.as_posix(), (status.st_size, status.st_mtime_ns))


@dataclass
class ZipArchive(Lazy):
    """A zip archive. It is read in place and never extracted."""

    root: str

    def name(self, path: str) -> str:
        return f"{self.root}:{path}"

    def entries(self, problems: Problems, others: list[str]) -> Iterator[Placed]:
        """Lists the archive. Names that lead outside of it, and duplicate names, are rejected.

        Files whose names are not those of images are added to `others`.
        """
        seen: set[str] = set()
        for info in self.opened().infolist():
            shown = info.filename.replace("\\", "/")  # Some programs of Windows write these.
            path = PurePosixPath(shown)
            if any(_is_litter(part) for part in path.parts if part != ".."):
                continue
            name = f"{self.root}:{info.filename!r}"
            if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                problems.report(name, "the path leads out of the archive")
            elif shown.endswith("/"):
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
                yield path.parts, Entry(info.filename, (info.file_size, info.CRC))

    def read(self, path: str) -> bytes:
        """Reads an entry and checks its checksum."""
        try:
            # Reads in pieces into one buffer, because `ZipFile.read` needs twice the memory.
            buffer = io.BytesIO()
            with self.opened().open(path) as stream:
                shutil.copyfileobj(stream, buffer)
            return buffer.getvalue()
        except Exception as error:  # zipfile and zlib raise their own types of errors.
            raise ValueError(f"cannot be read: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.root)
        except Exception as error:  # A damaged directory can raise many types of errors.
            raise DataError(f"{self.root}: not a readable zip: {error}") from error


class Tree:
    """The image files below a root. A folder that contains all others does not count as a class."""

    def __init__(self, root: str, problems: Problems) -> None:
        """Lists a folder or a zip.

        Raises:
          DataError: if it does not exist, has no images, or (unless skipped) has a bad one.
        """
        if not os.path.exists(root):
            raise DataError(
                f"data.dir={printable(root)} does not exist or cannot be opened; it must be a "
                "folder or a zip of images"
            )
        self._container = Folder(root) if Path(root).is_dir() else ZipArchive(root)
        others: list[str] = []
        images = sorted(self._container.entries(problems, others), key=lambda image: image[1])
        if not images:
            num = len(problems) + len(others)
            skipped = f" ({num} file(s) skipped)" if num else ""
            raise DataError(f"{root}: no images found{skipped}; images are {', '.join(SUFFIXES)}")
        if others:
            example = ("such as " if len(others) > 1 else "") + printable(others[0])
            ignored = f"ignored {len(others)} file(s) whose names are not image names"
            LOG.warning("%s: %s, %s", root, ignored, example)
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
        labelled = all(len(path) > 1 for path, _ in images)
        labels, classes = number_classes([p[0] for p, _ in images]) if labelled else (None, ())
        entries = [entry for _, entry in images]
        keys = [entry.path for entry in entries]
        return Records(self._container, keys, digest(keys), digest(entries), labels, classes)


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER

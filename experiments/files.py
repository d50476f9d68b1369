"""Atomic writes, JSON, arrays, hashes and locks."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import socket
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from experiments.errors import UserError, first_line

_NPY = ".npy"  # Ending of the names of arrays in an `.npz` file.
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` when it is complete, so that `path` is never half written.

    The unfinished file has a new, unique name. Two programs therefore do not share it, and a
    symbolic link cannot redirect it.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8 whatever the locale."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_line(path: Path, content: Any) -> None:
    """Appends a line of JSON to a log."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(content, sort_keys=True) + "\n")


def read_json(path: Path, **types: type | tuple[type, ...]) -> dict[str, Any]:
    """Reads a JSON object and checks that it has the given keys with values of the given types.

    Raises:
      UserError: if the file is missing, is not JSON, or lacks a key; names the file.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected an object, got {type(content).__name__}")
    check_types(path, content, **types)
    return content


def check_types(path: Path, content: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    """Checks that a JSON object has the given keys with values of the given types.

    Raises:
      UserError: if it does not; names the file and the key.
    """
    for key, kinds in types.items():
        if not isinstance(content.get(key), kinds):
            found = repr(content[key])[:80] if key in content else "nothing"
            raise UserError(f"{path} is damaged: {key!r} holds {found}")


def read_headers(path: Path) -> dict[str, Header]:
    """Returns shape and type of each array of a file without reading the arrays.

    Raises:
      ValueError: with only the reason, if the file is not an intact `.npz` of plain arrays.
    """
    with _opened(path) as archive:
        return {name: _header(archive, name) for name in _names(archive)}


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads only the arrays with these names.

    Raises:
      ValueError: with only the reason, if an array is missing or the `.npz` file is damaged.
    """
    found = {}
    with _opened(path) as archive:
        for name in names:
            _header(archive, name)  # Checks it.
            with archive.open(name + _NPY) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # zipfile, zlib and NumPy raise dozens of types of errors.
        raise ValueError(f"not a readable .npz of plain arrays: {error}") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(_NPY) for name in archive.namelist() if name.endswith(_NPY)]


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    """Reads the header of an array, and checks that the array has the size of its entry."""
    if name not in _names(archive):
        raise ValueError(f"no array named {name!r}; available: {_names(archive)}")
    info = archive.getinfo(name + _NPY)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADER_READERS:
            raise ValueError(f"{name!r}: array format {version} is not supported")
        shape, _, dtype = _HEADER_READERS[version](stream)
        expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{name!r} contains objects, not numbers")
    if min(shape, default=0) < 0 or expected != info.file_size:
        raise ValueError(f"{name!r}: expected {expected:,} bytes, got {info.file_size:,}")
    return Header(shape, dtype)


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads the named arrays, or all, of a file of a run.

    Raises:
      UserError: if the file is missing, is damaged, or lacks an array; names the file.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return read_arrays(path, names or read_headers(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error


def without_home(text: str) -> str:
    """Shortens the home folder to `~`, and paths below the working folder to relative paths.

    This is for text that is stored in a run, because runs are shared. Other absolute paths remain.
    """
    for folder, replacement in ((Path.cwd(), ""), (Path.home(), "~/")):
        if len(folder.parts) > 1:
            text = re.sub(rf"(?<![\w./~-]){re.escape(str(folder))}/", replacement, text)
    return text


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """Returns the SHA-256 of content that JSON can represent."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of_arrays(tree: Any) -> str:
    """Returns the SHA-256 of a pytree of arrays: paths, dtypes, shapes and bytes.

    Leaves are hashed by several threads, because hashing long buffers releases Python's lock.
    """
    import jax  # Not above: the process that runs PyTorch reads this module too.

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda leaf: _sha256_of_array(np.asarray(leaf[1])), leaves))
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    return sha256_of_json(list(zip(names, hashes, strict=True)))


def _sha256_of_array(array: np.ndarray) -> str:
    hashed = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    hashed.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


@contextlib.contextmanager
def locked(file: Path, guarded: str, alternative: str) -> Iterator[None]:
    """Holds a lock on a file, which the system releases when this process ends, even by a crash.

    If a run has several processes, only the first should acquire it. The file is created if missing
    and never removed, and names the last holder. Messages name what is `guarded`, and the
    `alternative` of a second program to waiting.

    Raises:
      UserError: if another process holds the lock, or if the file cannot be written.
    """
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"{guarded} cannot be written: {error.strerror} ({file.name})") from error
    with os.fdopen(handle, "r+", errors="replace") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = " ".join(stream.read(200).split())
            raise UserError(
                f"{guarded} is in use by {holder}; wait for it, stop it, or {alternative}"
            ) from None
        except OSError as error:  # Some file systems of clusters do not support locks.
            logging.getLogger("fdrl").warning(
                "%s cannot be locked (%s): make sure that no other program uses it",
                guarded,
                error.strerror,
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield

"""Atomic writes, JSON, hashes and locks."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.errors import UserError, first_line


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` when it is complete; `path` is never half written."""
    # A unique new file, so that two programs do not share it and no symbolic link redirects it.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} does not exist: was it removed or renamed?") from None
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Creates a hidden folder for what is renamed when it is complete; removes the rest."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=parent) as folder:
        yield Path(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whatever the locale."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # File names need not be UTF-8.


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_line(path: Path, content: Any) -> None:
    """Appends a line of JSON to a log."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(content, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a UserError names a damaged file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return content


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a digest of its content."""
    write_json(path, {**content, "sha256": sha256_of_json(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote; raises as `read_json`, also if the content was changed."""
    content = read_json(path)
    if content.pop("sha256", None) != sha256_of_json(content):
        raise UserError(f"{path} is damaged: it is not what was written; restore it")
    return content


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads the named arrays, or all, of an `.npz`; a UserError names a damaged file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; it must be an .npz file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy raise dozens of types of errors.
        text = f"{path}: not a readable .npz of plain arrays: {first_line(error)}"
        raise UserError(text) from error


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> str:
    """Writes arrays by name as one `.npz`, and returns the SHA-256 of the file."""
    with replacing(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return sha256_of_file(path)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """Returns the SHA-256 of content that JSON can represent."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of_arrays(tree: Any) -> str:
    """Returns the SHA-256 of a pytree of arrays: paths, dtypes, shapes and bytes."""
    import jax  # Not above: importing it takes a second, which a call for help does not need.

    def hashed(named: tuple[Any, Any]) -> tuple[str, str]:
        array = np.asarray(named[1])
        found = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return jax.tree_util.keystr(named[0]), found.hexdigest()

    with ThreadPoolExecutor() as pool:  # Hashing long buffers releases Python's lock.
        return sha256_of_json(list(pool.map(hashed, jax.tree_util.tree_leaves_with_path(tree))))


@contextlib.contextmanager
def locked(file: Path, guarded: str) -> Iterator[None]:
    """Locks a file until this process ends; a UserError says who uses what is `guarded`."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(handle, "r+", errors="replace") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = stream.read(200).strip() or "another process"
            raise UserError(f"{guarded} is in use by {holder}; wait for it or stop it") from None
        except OSError as error:  # Some file systems of clusters do not support locks.
            logging.getLogger("fdrl").warning("%s cannot be locked: %s", file, error)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        stream.flush()
        yield

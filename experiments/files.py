"""Atomic writes, JSON, hashes and locks."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.errors import UserError, first_line

# A lease is refreshed this often, and is free again when this much time passed without it.
_REFRESH_SECONDS, _LEASE_SECONDS = 10.0, 60.0
_ABANDONED_SECONDS = 24 * 3_600.0  # What is unfinished for this long was left by a killed program.
# An array of more bytes is refused if it was compressed by more than this factor; images never are.
_MAX_UNCHECKED, _MAX_COMPRESSION = 2**28, 100
Header = tuple[tuple[int, ...], np.dtype]  # Shape and type of a stored array.


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that replaces `path` when it is complete; `path` is never half written."""
    # A unique name, so that two programs do not share it and no symbolic link redirects it.
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


@contextlib.contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Creates a hidden folder for what is renamed when it is complete; removes the rest."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=parent) as folder:
        yield Path(folder)


def remove_remains(root: Path) -> None:
    """Removes unfinished files and folders, at most one folder below `root`, of killed programs."""
    for path in itertools.chain(root.glob(".*.part"), root.glob("*/.*.part")):
        with contextlib.suppress(OSError):  # The disk may be read-only.
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8 whatever the locale.

    Bytes of a file name that are not UTF-8 are written as escapes.
    """
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_line(path: Path, content: Any) -> None:
    """Appends a line of JSON to a log."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(json.dumps(content, sort_keys=True) + "\n")


def read_json(path: Path, **types: type | tuple[type, ...]) -> dict[str, Any]:
    """Reads a JSON object with values of the given types; a UserError names a damaged file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kinds) for key, kinds in types.items()
    ):
        raise UserError(f"{path} is damaged: it is not an object with {', '.join(types) or 'keys'}")
    return content


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a digest of its content."""
    write_json(path, {**content, "sha256": sha256_of_json(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote; raises as `read_json`, also if the content was changed."""
    content = read_json(path, sha256=str)
    if content.pop("sha256") != sha256_of_json(content):
        raise UserError(f"{path} is damaged: it is not what was written; restore it")
    return content


def read_headers(path: Path) -> dict[str, Header]:
    """Returns shape and type of each array of an `.npz` without reading the arrays.

    A UserError names a file that is damaged, has objects, or unpacks to much more than its size.
    """
    with _of_arrays(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return {name.removesuffix(".npy"): _header(archive, name) for name in names}


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads the named arrays, or all, of an `.npz`; raises as `read_headers`."""
    headers = read_headers(path)
    with _of_arrays(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names or headers}


@contextlib.contextmanager
def _of_arrays(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path} does not exist; it must be an .npz file")
    try:
        yield
    except Exception as error:  # zipfile, zlib and NumPy raise dozens of types of errors.
        # Seeking to a place that a damaged file names is an invalid argument, not a failing disk.
        of_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if of_disk or isinstance(error, MemoryError):
            raise
        text = f"{path}: not a readable .npz of plain arrays: {first_line(error)}"
        raise UserError(text) from error


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        expected = stream.tell() + math.prod(shape) * dtype.itemsize
    info = archive.getinfo(name)
    if dtype.hasobject:
        raise ValueError(f"{name!r} contains objects, not numbers")
    # NumPy would allocate what the header declares before it notices that there is less.
    if min(shape, default=0) < 0 or expected != info.file_size:
        raise ValueError(f"{name!r}: expected {expected:,} bytes, got {info.file_size:,}")
    if expected > max(_MAX_UNCHECKED, _MAX_COMPRESSION * info.compress_size):
        raise ValueError(
            f"{name!r}: {info.compress_size:,} bytes unpack to {expected:,}, more than "
            f"{_MAX_COMPRESSION} times as many"
        )
    return shape, dtype


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
def locked(file: Path, guarded: str, alternative: str) -> Iterator[None]:
    """Holds a lock on a file, which the system releases when this process ends, even by a crash.

    On a file system without locks, a file next to it is the lock while its holder refreshes it.

    Raises:
      UserError: if another process holds the lock; names what is `guarded`, the holder, and the
        `alternative` to waiting.
    """
    own, holder = f"process {os.getpid()} on {socket.gethostname()}", ""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(handle, "r+", errors="replace") as stream, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = stream.read(200).strip() or "another process"
        except OSError:  # Some file systems of clusters do not support locks.
            lease = file.with_name(f"{file.name}.lease")
            holder = stack.enter_context(_leased(lease, f"{own} since {time.strftime('%F %T')}"))
        if holder:
            raise UserError(
                f"{guarded} is in use by {holder}; wait for it, stop it, or {alternative}"
            )
        stream.truncate(0)
        stream.write(f"{own}\n")
        stream.flush()
        yield


@contextlib.contextmanager
def _leased(lease: Path, own: str) -> Iterator[str]:
    """Holds a file that counts as long as it is refreshed; yields the holder if that is another."""
    try:
        with lease.open("x") as stream:
            stream.write(own)
    except FileExistsError:
        ticket = lease.with_name(f".{lease.name}.{uuid.uuid4().hex[:8]}")
        ticket.write_text(own)
        # Both times are those of the file server, because clocks of machines differ.
        is_free = ticket.stat().st_mtime - lease.stat().st_mtime > _LEASE_SECONDS
        if is_free:
            os.replace(ticket, lease)
            time.sleep(1.0)  # Another program may have found the same old lease.
        ticket.unlink(missing_ok=True)
        holder = lease.read_text(errors="replace")
        if not is_free or holder != own:
            yield holder[:200] or "another process"
            return
    released = threading.Event()

    def refresh() -> None:
        while not released.wait(_REFRESH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(lease)

    threading.Thread(target=refresh, daemon=True).start()
    try:
        yield ""
    finally:
        released.set()
        lease.unlink(missing_ok=True)

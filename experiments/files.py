"""Atomic writes, JSON, hashes and locks."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.errors import UserError, first_line

# A lease is refreshed this often, and is free again when this much time passed without it.
_REFRESH_SECONDS, _LEASE_SECONDS = 10.0, 60.0


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
    for key, kinds in types.items():
        if not isinstance(content.get(key), kinds):
            found = repr(content[key])[:80] if key in content else "nothing"
            raise UserError(f"{path} is damaged: {key!r} holds {found}")
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


def read_npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Reads the named arrays, or all, of an `.npz` file of a run.

    Raises:
      UserError: if the file is missing, is damaged, or lacks an array; names the file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
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
    import jax  # Not above: importing it takes a second, which a call for help does not need.

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

    The file is created if missing, is never removed, and names the last holder. Messages name what
    is `guarded`, and the `alternative` of a second program to waiting. On a file system without
    locks, another file next to it is the lock while its holder refreshes it.

    Raises:
      UserError: if another process holds the lock.
      OSError: if the file cannot be written.
    """

    def busy(holder: str) -> UserError:
        return UserError(f"{guarded} is in use by {holder}; wait for it, stop it, or {alternative}")

    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(handle, "r+", errors="replace") as stream, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy(" ".join(stream.read(200).split())) from None
        except OSError:  # Some file systems of clusters do not support locks.
            if holder := stack.enter_context(_leased(file.with_name(f"{file.name}.lease"))):
                raise busy(holder) from None
        stream.truncate(0)
        stream.write(f"{_own_name()}\n")
        stream.flush()
        yield


@contextlib.contextmanager
def _leased(lease: Path) -> Iterator[str]:
    """Holds a file that counts as long as it is refreshed; yields the holder if that is another."""
    own = f"{_own_name()} since {time.strftime('%F %T')}"
    released = threading.Event()

    def refresh() -> None:
        while not released.wait(_REFRESH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(lease)

    try:
        with os.fdopen(os.open(lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as stream:
            stream.write(own)
    except FileExistsError:
        ticket = lease.with_name(f".{lease.name}.{uuid.uuid4().hex[:8]}")
        ticket.write_text(own)
        # Both times are those of the file server, because clocks of machines differ.
        age = ticket.stat().st_mtime - lease.stat().st_mtime
        if age < _LEASE_SECONDS:
            ticket.unlink()
            yield f"{lease.read_text(errors='replace')[:200]}, seen {max(age, 0.0):.0f} s ago"
            return
        os.replace(ticket, lease)
        time.sleep(1.0)  # Another program may have found the same old lease.
        if (holder := lease.read_text(errors="replace")) != own:
            yield holder[:200]
            return
    threading.Thread(target=refresh, daemon=True).start()
    try:
        yield ""
    finally:
        released.set()
        lease.unlink(missing_ok=True)


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"

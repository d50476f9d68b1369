"""Reads LSUN's LMDB databases, in which the value of each key is an encoded image."""

import glob
import os
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.records import digest
from experiments.errors import DataError

_FILE = "data.mdb"
# LMDB must not open a file twice in one process. All records and all threads that read them share
# one environment, which is closed with the last record.
_OPENING = threading.Lock()
_OPENED: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()


@dataclass
class LmdbRecords:
    """The images of one database, in the order of their keys, without labels."""

    root: str
    keys: list[bytes]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    _environment: Any = field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """Hash of the keys."""
        return digest(self.keys)

    @property
    def fingerprint(self) -> str:
        """Hash of the keys and the file's size and time stamp."""
        status = (Path(self.root) / _FILE).stat()
        return digest(self.keys, status.st_size, status.st_mtime_ns)

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        """Returns the database and the key."""
        return f"{self.root}:{self.keys[index].decode(errors='replace')}"

    def read(self, index: int) -> bytes:
        """Reads a value."""
        if self._environment is None:
            self._environment = _open(self.root)
        with self._environment.begin() as transaction:
            value = transaction.get(self.keys[index])
        if value is None:
            raise ValueError("the key is no longer in the database")
        return bytes(value)

    def __getstate__(self) -> dict[str, Any]:
        # Each process must open the database again.
        return {**self.__dict__, "_environment": None}


def open_database(root: str) -> LmdbRecords:
    """Lists a database.

    Raises:
      DataError: if it is missing, damaged or empty, or the package lmdb is not installed.
    """
    environment = _open(root)
    try:
        with environment.begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
    except Exception as error:  # Errors of lmdb, a package that is imported only on demand.
        raise DataError(f"{root}: not a readable LMDB: {error}") from error
    if not keys:
        raise DataError(f"{root}: the database is empty")
    return LmdbRecords(root, keys, _environment=environment)


def find_split(root: str, split: str) -> str | None:
    """Returns the database of a split: the root itself, or its sub-folder `*_SPLIT_lmdb`."""
    if (Path(root) / _FILE).exists():
        return root if split == "train" else None
    found = sorted(Path(root).glob(f"*{glob.escape(split)}_lmdb/{_FILE}"))
    return str(found[0].parent) if len(found) == 1 else None


def _open(root: str) -> Any:
    try:
        import lmdb
    except ModuleNotFoundError:
        raise DataError(
            "LSUN's databases need the package lmdb: pip install -e '.[lmdb]'"
        ) from None
    key = os.path.realpath(root)
    try:
        with _OPENING:
            environment = _OPENED.get(key)
            if environment is None:
                # Nothing is written, so no lock is needed, and folders may be read-only.
                environment = lmdb.open(
                    root, readonly=True, lock=False, readahead=False, create=False
                )
                _OPENED[key] = environment
        return environment
    except lmdb.Error as error:
        raise DataError(f"{root}: not a readable LMDB: {error}") from error

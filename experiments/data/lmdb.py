"""Reads LSUN's LMDB databases, in which the value of each key is an encoded image."""

import glob
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.records import Lazy, Records, digest
from experiments.errors import DataError

_FILE = "data.mdb"
# LMDB must not open a file twice in one process. All records share one environment, which is closed
# with the last of them.
_OPENED: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()


@dataclass
class _Database(Lazy):
    root: str

    def name(self, key: bytes) -> str:
        return f"{self.root}:{key.decode(errors='replace')}"

    def read(self, key: bytes) -> bytes:
        database = self.opened()
        try:
            with database.begin() as transaction:
                value = transaction.get(key)
        except Exception as error:  # Errors of lmdb, a package that is imported only on demand.
            raise ValueError(f"cannot be read: {error}") from error
        if value is None:
            raise ValueError("the key is no longer in the database")
        return bytes(value)

    def _open(self) -> Any:
        try:
            import lmdb
        except ModuleNotFoundError:
            raise DataError(
                "LSUN's databases need the package lmdb: pip install -e '.[lmdb]'"
            ) from None
        path = os.path.realpath(self.root)
        environment = _OPENED.get(path)
        if environment is None:
            # Nothing is written, so no lock is needed, and folders may be read-only.
            options = {"readonly": True, "lock": False, "readahead": False, "create": False}
            try:
                environment = _OPENED[path] = lmdb.open(self.root, **options)
            except lmdb.Error as error:
                raise DataError(f"{self.root}: not a readable LMDB: {error}") from error
        return environment


def open_database(root: str) -> Records:
    """Lists the images of a database in the order of their keys, without labels.

    Raises:
      DataError: if it is missing, damaged or empty, or the package lmdb is not installed.
    """
    database = _Database(root)
    environment = database.opened()
    try:
        with environment.begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
    except Exception as error:  # Errors of lmdb, a package that is imported only on demand.
        raise DataError(f"{root}: not a readable LMDB: {error}") from error
    if not keys:
        raise DataError(f"{root}: the database is empty")
    status = (Path(root) / _FILE).stat()
    fingerprint = digest(keys, status.st_size, status.st_mtime_ns)
    return Records(database, keys, digest(keys), fingerprint)


def find_split(root: str, split: str) -> str | None:
    """Returns the database of a split: its folder `*_SPLIT_lmdb`, or the root if it is one."""
    if (Path(root) / _FILE).exists():
        return root
    found = sorted(Path(root).glob(f"*{glob.escape(split)}_lmdb/{_FILE}"))
    return str(found[0].parent) if len(found) == 1 else None

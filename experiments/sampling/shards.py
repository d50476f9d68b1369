"""Stores samples on disk in parts, so that a killed program loses only the current part."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.files import locked, read_json, replacing, write_json


def lock(folder: Path) -> AbstractContextManager[None]:
    """Locks a set of samples against other programs; a UserError names the one that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Next to the folder, which is temporary; hidden, because it stays among the samples.
    file = folder.with_name(f".{folder.name}.lock")
    return locked(file, str(folder), "choose another name with --config.sample.name")


class Shards:
    """Equal parts of a set of samples, each in a file that is written atomically.

    A manifest describes the samples, so that parts with other settings are never mixed in. Only one
    program at a time may use a set; see `lock`.
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], num_samples: int, shard_size: int
    ) -> None:
        """Starts a set of shards, or resumes the one that exists.

        The record has everything that determines the samples, as values for JSON. An existing set
        keeps its size of shards.

        Raises:
          UserError: if the existing parts are of other samples.
        """
        manifest = folder / "manifest.json"
        if manifest.exists():
            saved = read_json(manifest, record=dict, shard_size=int)
            if saved["record"] != record:  # Begun by another program after this one chose the name.
                raise UserError(
                    f"{folder} contains parts of other samples; choose another name with "
                    "--config.sample.name"
                )
            shard_size = saved["shard_size"]
        else:
            # Written before any part, and possibly removed before the last part.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(manifest, {"record": record, "shard_size": shard_size})
        self.num_samples, self.shard_size = num_samples, shard_size
        self._folder = folder

    def missing(self) -> list[int]:
        """Returns the first positions of the parts that are missing."""
        return [first for first in self._firsts() if not self._file(first).exists()]

    def count(self, first: int) -> int:
        """Returns the number of samples in the part that starts at a position."""
        return min(self.shard_size, self.num_samples - first)

    def write(self, first: int, samples: np.ndarray) -> None:
        with replacing(self._file(first)) as file:
            np.save(file, samples)

    def read(self) -> Iterator[np.ndarray]:
        for first in self._firsts():
            yield np.load(self._file(first), allow_pickle=False)

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _firsts(self) -> range:
        return range(0, self.num_samples, self.shard_size)

    def _file(self, first: int) -> Path:
        return self._folder / f"{first:09d}.npy"

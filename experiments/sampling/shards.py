"""Samples in parts on disk: a kill loses the part under way and nothing else."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from experiments import settings
from experiments.errors import UserError
from experiments.files import locked, read_json, replacing, write_json


def lock(folder: Path) -> AbstractContextManager[None]:
    """Keeps other programs from drawing the same set of samples at the same time.

    Raises:
      UserError: if one does, naming its process.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, which comes and goes; hidden, as it stays among the samples.
    file = folder.with_name(f".{folder.name}.lock")
    return locked(file, str(folder), "choose another name with --config.sample.name")


class Shards:
    """Equal parts of a set of samples, each a file that is there whole or not at all.

    A manifest holds what the samples are of, so that those of other settings never get in. Only one
    program at a time may use a set: see `lock`.
    """

    def __init__(
        self, folder: Path, record: dict[str, Any], num_samples: int, shard_size: int
    ) -> None:
        """Starts a set of shards, or resumes the one that exists.

        Args:
          folder: where the parts are.
          record: what the samples follow from, as JSON can hold it.
          num_samples: of the whole set.
          shard_size: samples of a part; a set that is there keeps its own.

        Raises:
          UserError: if the parts that are there are of something else.
        """
        manifest = folder / "manifest.json"
        if manifest.exists():
            saved = read_json(manifest, record=dict, shard_size=int)
            _check_same(saved["record"], record, folder)
            shard_size = saved["shard_size"]
        else:
            # Written before any part and perhaps removed before the last.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(manifest, {"record": record, "shard_size": shard_size})
        self.num_samples, self.shard_size = num_samples, shard_size
        self._folder = folder

    def missing(self) -> list[int]:
        """Returns the first positions of the parts that are still to be drawn."""
        return [first for first in self._firsts() if not self._file(first).exists()]

    def count(self, first: int) -> int:
        """Returns how many samples the part from a position on has."""
        return min(self.shard_size, self.num_samples - first)

    def write(self, first: int, samples: np.ndarray) -> None:
        """Writes a part whole or not at all."""
        with replacing(self._file(first)) as file:
            np.save(file, samples)

    def read(self) -> Iterator[np.ndarray]:
        """Reads the parts in order, one after the other."""
        for first in self._firsts():
            yield np.load(self._file(first), allow_pickle=False)

    def remove(self) -> None:
        """Removes all parts."""
        shutil.rmtree(self._folder)

    def _firsts(self) -> range:
        return range(0, self.num_samples, self.shard_size)

    def _file(self, first: int) -> Path:
        return self._folder / f"{first:09d}.npy"


def _check_same(saved: dict[str, Any], present: dict[str, Any], folder: Path) -> None:
    differing = settings.differences(settings.flatten(saved), settings.flatten(present))
    if differing:
        raise UserError(
            f"{folder} holds a part of other samples: {'; '.join(differing.values())}. Finish "
            "those with their settings, remove that folder, or choose another name with "
            "--config.sample.name"
        )

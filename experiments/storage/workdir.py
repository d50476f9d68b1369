"""The folder of a run: where each thing lies, and writing so that nothing is half there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from experiments.errors import UserError
from experiments.storage.lock import exclusive


class Workdir:
    """Paths of a run's folder.

    `config.json` the settings; `prior.npz` the fitted prior; `metrics.jsonl` one line a logging
    interval; `checkpoints/` the newest; `best/` the best by the metric during training;
    `snapshots/` samples during training; `samples/`; `curves/`; `pictures/`; `export/`;
    `evaluation.json`; `report.html`; `classifier.json` what a classifier's run is of; `lock` who
    trains here.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.prior = self.root / "prior.npz"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.best = self.root / "best"
        self.curves = self.root / "curves"
        self.snapshots = self.root / "snapshots"
        self.samples = self.root / "samples"
        self.pictures = self.root / "pictures"
        self.evaluation = self.root / "evaluation.json"
        self.classifier = self.root / "classifier.json"
        self.report = self.root / "report.html"
        self.lock_file = self.root / "lock"

    def create(self) -> None:
        """Makes the folders.

        Raises:
          UserError: if the folder cannot be written.
        """
        try:
            for folder in (self.checkpoints, self.snapshots, self.samples, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={self.root} cannot be written: {error.strerror}") from error

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs out of the folder.

        Raises:
          UserError: if another process trains here, naming it.
        """
        otherwise = "train in another --workdir"
        return exclusive(self.lock_file, f"--workdir={self.root}", otherwise)

    def snapshot_files(self, up_to_step: int) -> list[tuple[int, Path]]:
        """Returns the snapshots of steps up to one, in order."""
        files = [path for path in self.snapshots.glob("*.npz") if path.stem.isdecimal()]
        found = sorted((int(path.stem), path) for path in files)
        return [(step, path) for step, path in found if step <= up_to_step]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON file, which must hold certain keys.

    Raises:
      UserError: if it is missing, no JSON, or lacks a key.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or not content.keys() >= set(keys):
            raise ValueError(f"it lacks one of {', '.join(keys)}")
        return content
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train a run into this workdir first") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8 whatever the locale, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes its place at the end: a reader or a crash never meets half of it."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        yield file
    os.replace(part, path)

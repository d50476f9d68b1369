"""The folder of a run: where each thing lies, and writing so that nothing is half there."""

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.errors import UserError


class Workdir:
    """Paths of a run's folder.

    `config.json` the settings; `prior.npz` the fitted prior; `metrics.jsonl` one line a logging
    interval; `checkpoints/` the newest; `best/` the best by the metric during training;
    `snapshots/` samples during training; `samples/`; `curves/`; `pictures/`; `evaluation.json`;
    `report.html`; `classifier.json` what a classifier's run is of; `lock` who trains here.
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

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs out of the folder; the system frees it however this process ends.

        Raises:
          UserError: if another process trains here, naming it.
        """
        try:
            file = self.lock_file.open("a+")
        except OSError as error:
            raise UserError(f"--workdir={self.root} cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"--workdir={self.root} is in use by {file.read().strip()}; wait for it, stop "
                    "it, or train in another --workdir"
                ) from None
            except OSError as error:  # Some file systems of clusters have no locks.
                logging.getLogger("fdrl").warning(
                    "%s cannot be locked (%s): see to it that no other run uses it",
                    self.root,
                    error.strerror,
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield

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
    """Writes a text file whole or not at all: a reader or a crash never meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)

"""The folder of a run: where each thing lies, and writing so that nothing is half there."""

import json
import os
from pathlib import Path
from typing import Any

from experiments.errors import UserError


class Workdir:
    """Paths of a run's folder.

    `config.json` the settings; `prior.npz` the fitted prior; `metrics.jsonl` one line a logging
    interval; `checkpoints/`; `snapshots/` samples during training; `samples/`; `pictures/`;
    `evaluation.json`; `report.html`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.prior = self.root / "prior.npz"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "checkpoints"
        self.snapshots = self.root / "snapshots"
        self.samples = self.root / "samples"
        self.pictures = self.root / "pictures"
        self.evaluation = self.root / "evaluation.json"
        self.report = self.root / "report.html"

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

    def snapshot_files(self, up_to_step: int) -> list[tuple[int, Path]]:
        """Returns the snapshots of steps up to one, in order."""
        found = sorted((int(path.stem), path) for path in self.snapshots.glob("*.npz"))
        return [(step, path) for step, path in found if step <= up_to_step]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train a run into this workdir first") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all: a reader or a crash never meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)

"""Logs metrics to JSON lines and, optionally, to TensorBoard and Weights & Biases."""

import importlib
import json
import math
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import UserError
from experiments.files import sha256_of_json, write_text

Record = dict[str, float]
PREFIX = "evaluation/"  # Prefix of the names of metrics of samples.


class Writer(Protocol):
    """Writes one record of scalars per logging interval."""

    def write(self, step: int, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Writes one JSON object per line.

    When a run resumes, lines after the resumed step are removed, so that no step occurs twice.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= resume_step]
        write_text(path, "".join(kept))
        self._file = path.open("a")

    def write(self, step: int, record: Record) -> None:
        # JSON has no NaN; a run that diverges writes null for it.
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, by tensorboardX (no TensorFlow)."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        module = _import("tensorboardX", "tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, step: int, record: Record) -> None:
        for key, value in record.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. In the mode "offline", nothing leaves the machine."""

    def __init__(self, folder: Path, mode: str, settings: dict[str, Any]) -> None:
        module = _import("wandb", "wandb")
        root = folder.absolute()
        self._run = module.init(
            project="fdrl_jax",
            dir=str(folder),
            mode=mode,
            config=settings,
            name=root.name,
            # From the workdir, so that a resumed run continues the same curve; from its whole path,
            # because many runs of a sweep have a folder `seed_0`.
            id=sha256_of_json(str(root)),
            resume="allow",
        )

    def write(self, step: int, record: Record) -> None:
        self._run.log(record, step=step)

    def close(self) -> None:
        self._run.finish()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, oldest first, without a last line cut by a crash.

    Raises:
      UserError: if another line is damaged; names the first one.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # Text after the last line break was cut by a crash.
    return [_parse(line, f"{path}:{n}") for n, line in enumerate(lines[:-1], 1) if line]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        numbers = all(isinstance(value, int | float | None) for value in record.values())
        if isinstance(record["step"], int) and numbers:
            return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(f"{where}: not a line of metrics; remove the line and try again")


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"config: this needs {name}; install it with: pip install -e '.[{extra}]'"
        ) from None

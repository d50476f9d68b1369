"""Logs metrics to JSON lines and, optionally, to TensorBoard."""

import contextlib
import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.files import write_text
from experiments.settings import Settings
from fdrl_jax.training import parallel

Record = dict[str, float]
Writer = Callable[[int, Record], None]  # Writes a record of scalars at a step.
PREFIX = "evaluation/"  # Prefix of the names of metrics of samples.


@contextlib.contextmanager
def writers(root: Path, settings: Settings, resume_step: int) -> Iterator[list[Writer]]:
    """Opens the logs of a run, on the first process; removes records after the resumed step."""
    with contextlib.ExitStack() as stack:
        opened = []
        if parallel.is_first_process():
            opened.append(json_lines(root / "metrics.jsonl", resume_step))
            if settings.log.tensorboard:
                opened.append(_tensorboard(root / "tensorboard", resume_step))
        yield [stack.enter_context(writer) for writer in opened]


@contextlib.contextmanager
def json_lines(path: Path, resume_step: int) -> Iterator[Writer]:
    """Writes one JSON object per line."""
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= resume_step]
    write_text(path, "".join(kept))

    def write(step: int, record: Record) -> None:
        # JSON has no NaN; a run that diverges writes null for it.
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
        file.write(json.dumps({"step": step, **finite}) + "\n")
        file.flush()

    with path.open("a") as file:
        yield write


@contextlib.contextmanager
def _tensorboard(folder: Path, resume_step: int) -> Iterator[Writer]:
    """Writes event files for TensorBoard, by tensorboardX (no TensorFlow)."""
    module = _import("tensorboardX", "tensorboard")

    def write(step: int, record: Record) -> None:
        for key, value in record.items():
            events.add_scalar(key, value, step)

    with module.SummaryWriter(str(folder), purge_step=resume_step + 1) as events:
        yield write


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, oldest first; a UserError names a damaged one."""
    if not path.exists():
        return []
    records = []
    # Text after the last line break was cut by a crash.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}:{number}: not a line of metrics; remove it") from None
        records.append(record)
    return records


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"log.{extra} needs {name}; install it with: pip install -e '.[{extra}]'"
        ) from None

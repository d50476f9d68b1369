"""Logs metrics to JSON lines and, optionally, to TensorBoard and Weights & Biases."""

import contextlib
import importlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments import settings as settings_lib
from experiments.errors import UserError
from experiments.files import sha256_of_json, write_text
from experiments.settings import Settings
from fdrl_jax.training import parallel

Record = dict[str, float]
Writer = Callable[[int, Record], None]  # Writes a record of scalars at a step.
PREFIX = "evaluation/"  # Prefix of the names of metrics of samples.


@contextlib.contextmanager
def writers(root: Path, settings: Settings, resume_step: int) -> Iterator[list[Writer]]:
    """Opens the logs that the settings ask for in the folder of a run, on the first process.

    When a run resumes, records after the resumed step are removed, so that no step occurs twice.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        if parallel.is_first_process():
            opened.append(json_lines(root / "metrics.jsonl", resume_step))
            if settings.log.tensorboard:
                opened.append(_tensorboard(root / "tensorboard", resume_step))
            if settings.log.wandb != "off":
                opened.append(_wandb(root, settings))
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
    """Event files for TensorBoard, by tensorboardX (no TensorFlow)."""
    module = _import("tensorboardX", "tensorboard")

    def write(step: int, record: Record) -> None:
        for key, value in record.items():
            events.add_scalar(key, value, step)

    with module.SummaryWriter(str(folder), purge_step=resume_step + 1) as events:
        yield write


@contextlib.contextmanager
def _wandb(root: Path, settings: Settings) -> Iterator[Writer]:
    """Weights & Biases. In the mode "offline", nothing leaves the machine."""
    folder = root.absolute()
    curve = _import("wandb", "wandb").init(
        project="fdrl_jax",
        dir=str(root),
        mode=settings.log.wandb,
        config=settings_lib.shareable(settings),
        name=folder.name,
        # From the workdir, so that a resumed run continues the same curve; from its whole path,
        # because many runs of a sweep have a folder `seed_0`.
        id=sha256_of_json(str(folder)),
        resume="allow",
    )
    try:
        yield lambda step, record: curve.log(record, step=step)
    finally:
        curve.finish()


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, oldest first, without a last line cut by a crash.

    Raises:
      UserError: if another line is damaged; names the first one.
    """
    if not path.exists():
        return []
    # Text after the last line break was cut by a crash.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        is_numbered = isinstance(record, dict) and isinstance(record.get("step"), int)
        if is_numbered and all(isinstance(v, int | float | None) for v in record.values()):
            return record
    raise UserError(f"{where}: not a line of metrics; remove the line and try again")


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"log.{extra} needs {name}; install it with: pip install -e '.[{extra}]'"
        ) from None

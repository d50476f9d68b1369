"""Logs metrics to JSON lines and, optionally, to TensorBoard."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments import devices
from experiments.errors import UserError
from experiments.files import write_text

Record = dict[str, float]
PREFIX = "evaluation/"  # Of the names of metrics of samples.


@contextlib.contextmanager
def writer(
    root: Path, resume_step: int, *, tensorboard: bool
) -> Iterator[Callable[[int, Record], None]]:
    """Opens the log of a run, on the first process, without what is after the resumed step."""
    if not devices.is_first_process():
        yield lambda step, record: None
        return
    path = root / "metrics.jsonl"
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= resume_step]
    write_text(path, "".join(kept))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a"))
        events: Any = None
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                needed = "log.tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
                raise UserError(needed) from None
            folder = str(root / "tensorboard")
            events = stack.enter_context(SummaryWriter(folder, purge_step=resume_step + 1))

        def write(step: int, record: Record) -> None:
            # JSON has no NaN; a run that diverges writes null for it.
            finite = {k: v if math.isfinite(v) else None for k, v in record.items()}
            file.write(json.dumps({"step": step, **finite}) + "\n")
            file.flush()
            for key, value in record.items() if events else ():
                events.add_scalar(key, value, step)

        yield write


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, oldest first; skips damaged ones with a warning."""
    # Text after the last line break was cut by a crash.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                records.append(found)
                continue
        logging.getLogger("fdrl").warning("%s: skipped line %d, which is damaged", path, number)
    return records

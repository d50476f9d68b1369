"""Runs what a sweep lists, one process after the other, and remembers how each ended."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments.errors import DivergedError
from experiments.evaluation.metrics import values
from experiments.storage.workdir import Workdir, read_json, write_json
from experiments.sweep.plan import Plan, Run

DONE, DIVERGED, FAILED = "done", "diverged", "failed"
_RECORD, _KEYS = "outcome.json", ("asked", "status", "reason", "seconds")
_ERROR = "error: "


class Outcome(NamedTuple):
    """How a run ended: "done", "diverged" or "failed", why if it did not, and its metrics."""

    status: str
    reason: str
    seconds: float
    metrics: dict[str, Any]


def run_program(config: str, run: Run, folder: Path) -> tuple[int, str]:
    """Runs the program in a process of its own: neither a crash nor a leak reaches the next run.

    Returns:
      Its exit code, and unless that is 0 the error that it told, or else its last line.
    """
    overrides = [f"--config.{key}={value}" for key, value in run.settings.items()]
    command = [sys.executable, "-m", "experiments.main", f"--config={config}"]
    output = folder / "output.txt"
    with output.open("w") as file:
        code = subprocess.run(
            [*command, f"--workdir={folder}", *overrides], stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code == 0:
        return code, ""
    if code < 0:
        return code, f"killed by signal {-code}"
    # Progress bars write over their line.
    text = output.read_text(errors="replace")  # A kill may cut a character.
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    told = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return code, (told or lines or ["it wrote nothing"])[-1]


def run_all(
    plan: Plan, root: Path, program: Callable[[str, Run, Path], tuple[int, str]] = run_program
) -> list[Outcome]:
    """Runs every run that has not ended yet, under a progress bar.

    A run that is done or has diverged would end so again and is left as it is; one that was
    killed goes on from its newest checkpoint; one that failed is tried again.

    Args:
      plan: what to run.
      root: the sweep's folder.
      program: `(config file, run, its folder) -> (exit code, what went wrong)`.

    Returns:
      How each of `plan.runs` ended.
    """
    outcomes: dict[str, Outcome] = {}
    todo = {run.folder: run for run in plan.runs}
    with tqdm(total=len(todo), unit="run") as bar:
        for name, run in todo.items():
            bar.set_description(name)
            folder, asked = root / name, _asked(plan.config, run)
            outcome = _known(folder, asked)
            if outcome is None:
                folder.mkdir(parents=True, exist_ok=True)
                started = time.perf_counter()
                code, reason = program(plan.config, run, folder)
                outcome = _remember(folder, asked, code, reason, time.perf_counter() - started)
            if outcome.status != DONE:
                bar.write(f"{name} {outcome.status}: {outcome.reason}", file=sys.stderr)
            outcomes[name] = outcome
            bar.update()
    return [outcomes[run.folder] for run in plan.runs]


def _asked(config: str, run: Run) -> dict[str, Any]:
    return {"config": config, "settings": {key: str(value) for key, value in run.settings.items()}}


def _known(folder: Path, asked: dict[str, Any]) -> Outcome | None:
    """Returns how a run of these settings ended before, if trying again would change nothing."""
    record = folder / _RECORD
    if not record.exists():
        return None
    known = read_json(record, *_KEYS)
    if known["asked"] != asked or known["status"] == FAILED:
        return None
    return _outcome(folder, known)


def _remember(
    folder: Path, asked: dict[str, Any], code: int, reason: str, seconds: float
) -> Outcome:
    status = {0: DONE, DivergedError.exit_code: DIVERGED}.get(code, FAILED)
    record = {"asked": asked, "status": status, "reason": reason, "seconds": seconds}
    write_json(folder / _RECORD, record)
    return _outcome(folder, record)


def _outcome(folder: Path, record: dict[str, Any]) -> Outcome:
    done = record["status"] == DONE
    stored = read_json(Workdir(folder).evaluation, "metrics")["metrics"] if done else {}
    metrics = values(stored)
    return Outcome(record["status"], record["reason"], record["seconds"], metrics)

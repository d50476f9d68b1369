"""Runs the runs of a sweep, one process after the other, and records how each ended."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments import command_line, records, report, settings
from experiments import run as run_lib
from experiments.errors import DivergedError, UserError
from experiments.files import read_json, sha256_of_json, write_json
from experiments.sweep.plan import Plan, Run
from fdrl_jax._names import nearest

DONE, DIVERGED, FAILED = "done", "diverged", "failed"
_RECORD = "outcome.json"
_ERROR = "error: "
_MAX_SECONDS_TO_SAVE = 600


class Outcome(NamedTuple):
    """How a run ended: "done", "diverged" or "failed", the reason, and its metrics."""

    status: str
    reason: str
    seconds: float
    metrics: dict[str, float]


def run_program(config: str, run: Run, folder: Path) -> tuple[int, str]:
    """Runs the program in a separate process, so that a crash or a leak does not affect other runs.

    Returns its exit code and, if it is not 0, the error that it reported, or else its last line.
    """
    changes = [f"--config.{key}={value}" for key, value in run.settings.items()]
    main = [sys.executable, "-m", "experiments.main"]
    arguments = [*main, f"--config={config}", f"--workdir={folder}", *changes]
    output = folder / "output.txt"
    with (
        output.open("w") as file,
        subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            # The sweep is interrupted: stop the run as well, which first saves its state.
            process.terminate()
            process.wait(timeout=_MAX_SECONDS_TO_SAVE)
            raise
    if code == 0:
        return code, ""
    if code < 0:
        return code, f"killed by signal {-code}"
    # Progress bars overwrite their line.
    text = output.read_text(errors="replace")  # A kill may cut a character in two.
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return code, (errors or lines or ["no output"])[-1]


def run_all(
    plan: Plan, root: Path, program: Callable[[str, Run, Path], tuple[int, str]] = run_program
) -> list[Outcome]:
    """Runs all runs that have not ended yet, with a progress bar, and returns their outcomes.

    Runs that are done or have diverged are skipped, because they would end in the same way again. A
    run that was killed resumes from its newest checkpoint, and a run that failed is tried again.
    """
    outcomes: dict[str, Outcome] = {}
    todo = {run.folder: run for run in plan.runs}
    with tqdm(total=len(todo), unit="run") as bar:
        for name, run in todo.items():
            bar.set_description(name)
            folder = root / name
            # The identity of a run: its settings from the current config file.
            resolved = settings.checked({**command_line.load_config(plan.config), **run.settings})
            asked = sha256_of_json(resolved)
            record = _known(folder, asked)
            if record is None:
                folder.mkdir(parents=True, exist_ok=True)
                started = time.perf_counter()
                code, reason = program(plan.config, run, folder)
                seconds = time.perf_counter() - started
                status = {0: DONE, DivergedError.exit_code: DIVERGED}.get(code, FAILED)
                record = {"status": status, "reason": reason, "seconds": seconds}
                write_json(folder / _RECORD, {"asked": {"settings_sha256": asked}, **record})
            metrics: dict[str, float] = {}
            if record["status"] == DONE:
                metrics = _metrics_of(folder, plan.metrics)
            else:
                bar.write(f"{name} {record['status']}: {record['reason']}", file=sys.stderr)
            outcomes[name] = Outcome(record["status"], record["reason"], record["seconds"], metrics)
            bar.update()
    return [outcomes[run.folder] for run in plan.runs]


def _known(folder: Path, asked: str) -> dict[str, Any] | None:
    """Returns the record of a run of the settings with this digest, if it need not run again."""
    record = folder / _RECORD
    if not record.exists():
        return None
    known = read_json(record, asked=dict, status=str, reason=str, seconds=(int, float))
    if known["asked"].get("settings_sha256") != asked:
        raise UserError(
            f"{folder} contains a run with other settings: the config file or the sweep has "
            "changed since. Remove that folder, or choose another --workdir"
        )
    return None if known["status"] == FAILED else known


def _metrics_of(folder: Path, wanted: tuple[str, ...]) -> dict[str, float]:
    """Returns the metrics of a run that is done; a UserError names a wanted one that is missing."""
    own = records.of_run(run_lib.read(folder))
    if own is None:
        raise UserError(f"{folder} has no evaluation; remove that folder to run it again")
    found = {name: metric.value for name, metric in report.metrics_of(own).items()}
    for name in wanted:
        if name not in found:
            raise UserError(
                f"--metrics: no metric {name!r}{nearest(name, found)}; available: "
                f"{', '.join(found)}"
            )
    return found

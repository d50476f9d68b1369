"""Faults of the disk: damaged, full and read-only, and two runs in one place."""

import os
import subprocess
from pathlib import Path

from benchmarks.faults import damage, program
from benchmarks.faults.outcome import Outcome


def damage_newest(folder: Path) -> Outcome:
    """Damages the newest checkpoint in each way, once, each time before the run goes on."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 10, log)
    complaints = []
    for i, kind in enumerate(damage.KINDS):
        last = 10 + 5 * i
        kind(damage.largest_file(run / "checkpoints" / str(last) / "state"))
        program.train_to(run, last + 5, log)
        if f"checkpoints/{last} is damaged" not in program.told(log):
            complaints.append(f"no warning of {kind.__name__}: {program.told(log)}")
    last = 10 + 5 * len(damage.KINDS)
    if program.state_digest(run, last) != program.train_to(folder / "whole", last, log):
        complaints.append(f"step {last} differs from that of the uninterrupted run")
    names = ", ".join(kind.__name__ for kind in damage.KINDS)
    lost = f"the work since the checkpoint before; step {last} is equal bit for bit"
    return Outcome(f"newest checkpoint damaged ({names})", len(damage.KINDS), lost, complaints)


def fill_disk(folder: Path, bytes_left: int = 40_000) -> Outcome:
    """Goes on with a run under a limit on the size of files that its checkpoints exceed."""
    run, log = folder / "run", folder / "log"
    before = program.train_to(run, 5, log)
    code = _go_on(run, log, "prlimit", f"--fsize={bytes_left}")
    complaints = _complaints(code, log, "File too large", run, 5, before)
    return Outcome(
        "full disk", 1, "the work since the last checkpoint, which is intact", complaints
    )


def forbid_writing(folder: Path) -> Outcome:
    """Goes on with a run whose folder has become read-only."""
    run, log = folder / "run", folder / "log"
    before = program.train_to(run, 5, log)
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    # The administrator may write everywhere, unless this right is given up; others have none.
    obey_modes = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    try:
        code = _go_on(run, log, *obey_modes)
    finally:
        for path in folders:
            path.chmod(0o755)
    complaints = _complaints(code, log, "Permission denied", run, 5, before)
    return Outcome("read-only workdir", 1, "nothing: it does not start", complaints)


def start_twice(folder: Path) -> Outcome:
    """Starts a second run in the folder of one that trains; and again when that was killed."""
    run, log, second = folder / "run", folder / "log", folder / "second"
    first = program.start(program.command(run), log)
    program.wait_for_step(first, run, 5)
    code = program.start(program.command(run), second).wait()
    complaints = [] if code == 2 else [f"exit code {code}"]
    if f"is in use by process {first.pid} on" not in program.told(second):
        complaints.append(f"no clear message: {program.told(second)}")
    if first.poll() is not None:
        complaints.append(f"the first run ended: {program.told(log)}")
    program.kill(first)
    program.train_to(run, program.newest(run) + 5, log)
    return Outcome("two runs in one workdir", 1, "nothing: the second refuses", complaints)


def _go_on(run: Path, log: Path, *wrapper: str) -> int:
    """Goes on with a run under a command of Linux that limits it; returns the exit code."""
    with log.open("w") as stream:
        return subprocess.run(
            [*wrapper, *program.command(run, {"train.num_steps": 40})],
            cwd=program.ROOT,
            stderr=stream,
            stdout=subprocess.DEVNULL,
        ).returncode


def _complaints(code: int, log: Path, message: str, run: Path, step: int, digest: str) -> list[str]:
    """Says what is wrong with a run that should have ended with a line and an intact checkpoint."""
    told = program.told(log)
    # TensorStore may print stacks of its own around it.
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    complaints = [] if code == 2 else [f"exit code {code}"]
    if len(errors) != 1 or message not in errors[0]:
        complaints.append(f"no clear message: {told}")
    again = program.train_to(run, step + 5, log)
    if "damaged" in program.told(log) or program.state_digest(run, step) != digest:
        complaints.append(f"the checkpoint of step {step} is not intact: {program.told(log)}")
    return complaints if again else [*complaints, "it does not go on"]

"""Faults of storage: damaged, full, read-only or removed; and several programs in one run."""

import os
import subprocess
import time
from pathlib import Path

from benchmarks.faults import damage, program
from benchmarks.faults.outcome import Outcome, complaints_about, words


def damage_newest(folder: Path) -> Outcome:
    """Damages the newest checkpoint in each way once, and resumes the run each time."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 10, log)
    complaints = []
    for i, kind in enumerate(damage.KINDS):
        last = 10 + 5 * i
        kind(damage.largest_file(run / "checkpoints" / str(last) / "state"))
        program.train_to(run, last + 5, log)
        if f"checkpoints/{last} is damaged" not in program.printed(log):
            complaints.append(f"no warning of {kind.__name__}: {program.printed(log)}")
    last = 10 + 5 * len(damage.KINDS)
    if program.state_digest(run, last) != program.train_to(folder / "whole", last, log):
        complaints.append(f"step {last} differs from that of the uninterrupted run")
    names = ", ".join(kind.__name__ for kind in damage.KINDS)
    lost = f"the work since the checkpoint before; step {last} is equal bit for bit"
    return Outcome(f"newest checkpoint damaged ({names})", len(damage.KINDS), lost, complaints)


def fill_disk(folder: Path, bytes_left: int = 40_000) -> Outcome:
    """Resumes a run with a limit on file sizes that its checkpoints exceed."""
    run, log = folder / "run", folder / "log"
    before = program.train_to(run, 5, log)
    code, seconds = _resume(run, log, "prlimit", f"--fsize={bytes_left}")
    complaints = complaints_about([code], [2], [program.printed(log)], "File too large")
    if "that of step 5 is intact" not in program.printed(log):
        complaints.append(f"it does not say that step 5 is intact: {program.printed(log)}")
    lost = "the work since the last checkpoint, which is intact"
    complaints += _complaints_of_next(run, log, 5, before)
    return Outcome("file too large", 1, lost, complaints, words([code]), 1, seconds)


def forbid_writing(folder: Path) -> Outcome:
    """Resumes a run whose folder has become read-only."""
    run, log = folder / "run", folder / "log"
    before = program.train_to(run, 5, log)
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    # The administrator may write everywhere unless this right is dropped; others do not have it.
    obey_modes = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    try:
        code, seconds = _resume(run, log, *obey_modes)
    finally:
        for path in folders:
            path.chmod(0o755)
    complaints = complaints_about([code], [2], [program.printed(log)], "Permission denied")
    complaints += _complaints_of_next(run, log, 5, before)
    lost = "nothing: it does not start"
    return Outcome("read-only workdir", 1, lost, complaints, words([code]), 1, seconds)


def remove_workdir(folder: Path) -> Outcome:
    """Removes the folder of a run during training."""
    run, log = folder / "run", folder / "log"
    process = program.start(program.command(run), log)
    program.wait_for_step(process, run, 5)
    started = time.monotonic()
    run.rename(folder / "elsewhere")
    try:
        code: int | None = process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        code = None
        program.kill(process)
    seconds = time.monotonic() - started
    complaints = complaints_about([code], [2], [program.printed(log)])
    lost = "the work since the last checkpoint in the removed folder"
    name = "workdir removed while training"
    return Outcome(name, 1, lost, complaints, words([code]), 1, seconds)


def start_twice(folder: Path) -> Outcome:
    """Starts a second training in the same folder, and again after the first was killed."""
    run, log, second = folder / "run", folder / "log", folder / "second"
    first = program.start(program.command(run), log)
    program.wait_for_step(first, run, 5)
    started = time.monotonic()
    code = program.start(program.command(run), second).wait()
    seconds = time.monotonic() - started
    complaints = [] if code == 2 else [f"exit code {code}"]
    if f"is in use by process {first.pid} on" not in program.printed(second):
        complaints.append(f"no clear message: {program.printed(second)}")
    if first.poll() is not None:
        complaints.append(f"the first run ended: {program.printed(log)}")
    program.kill(first)
    program.train_to(run, program.newest(run) + 5, log)
    lost = "nothing: the second does not start"
    return Outcome("two runs in one workdir", 1, lost, complaints, words([code]), 1, seconds)


def read_during_training(folder: Path) -> Outcome:
    """Samples, evaluates, exports and draws curves during training that keeps one checkpoint."""
    run, log, other = folder / "run", folder / "log", folder / "other"
    changes = {
        "checkpoint.keep": 1,
        "evaluate.num_samples": 64,
        "curve.lengths": "(0,1)",
        "optimizer.learning_rate": 1e-9,  # However slow the readers are, it never diverges.
    }
    training = program.start(program.command(run, changes), log)
    program.wait_for_step(training, run, 5)
    complaints, codes = [], []
    for mode in ("sample", "evaluate", "curve", "export"):
        flags = ("--platforms=cpu",) if mode == "export" else ("--num_samples=64",)
        code = program.start(program.command_of_mode(mode, run, *flags), other).wait()
        codes.append(code)
        printed = program.printed(other)
        complaints += [] if code == 0 and "error" not in printed else [f"{mode}: {code}, {printed}"]
    if training.poll() is not None:
        complaints.append(f"the training ended: {program.printed(log)}")
    program.kill(training)
    lost = "nothing: the programs do not disturb each other"
    name = "sample, evaluate, curve and export during training, one checkpoint kept"
    return Outcome(name, len(codes), lost, complaints, words(codes))


def evaluate_twice(folder: Path) -> Outcome:
    """Evaluates a run in two processes at once."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 5, log, {"evaluate.num_samples": 64})
    logs = [folder / f"evaluate_{i}" for i in range(2)]
    command = program.command_of_mode("evaluate", run, "--num_samples=64")
    codes = [process.wait() for process in [program.start(command, file) for file in logs]]
    complaints = [] if codes == [0, 0] else [f"{codes}: {[program.printed(f) for f in logs]}"]
    records = list((run / "evaluations").glob("*/record.json"))
    left = [path.name for path in (run / "evaluations").iterdir() if path.name.startswith(".")]
    if len(records) != 1 or left:
        complaints.append(f"records {records}, left over {left}")
    lost = "nothing: they write one record"
    return Outcome("two evaluations at once", 1, lost, complaints, words(codes))


def reject_classifier(folder: Path) -> Outcome:
    """Trains a classifier in the folder of a density ratio, and with a config for ratios."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 5, log)
    before = _content(run)
    classifier = [*program.command(run)[:3], "--mode=train_classifier"]
    commands = (
        [*classifier, "--config=configs/digits_classifier.py:tiny", f"--workdir={run}"],
        [*classifier, "--config=configs/swissroll.py:tiny", f"--workdir={folder / 'new'}"],
    )
    codes = [program.start(command, log).wait() for command in commands]
    complaints = [] if codes == [2, 2] else [f"exit codes {codes}: {program.printed(log)}"]
    if _content(run) != before:
        complaints.append(f"the run was changed: {_content(run).symmetric_difference(before)}")
    if (folder / "new").exists():
        complaints.append("the rejected command left a folder")
    lost = "nothing: nothing is written"
    return Outcome("rejected classifier", 2, lost, complaints, words(codes), 1)


def _content(run: Path) -> set[tuple[str, bytes]]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {(str(path.relative_to(run)), path.read_bytes()) for path in files}


def _resume(run: Path, log: Path, *wrapper: str) -> tuple[int, float]:
    """Resumes a run inside a Linux command that limits it; returns the exit code and the time."""
    started = time.monotonic()
    with log.open("w") as stream:
        code = subprocess.run(
            [*wrapper, *program.command(run, {"train.num_steps": 40})],
            cwd=program.ROOT,
            env={**os.environ, **program.environment()},
            stderr=stream,
            stdout=subprocess.DEVNULL,
        ).returncode
    return code, time.monotonic() - started


def _complaints_of_next(run: Path, log: Path, step: int, digest: str) -> list[str]:
    """Resumes a run after a fault, and returns complaints about its checkpoint."""
    program.train_to(run, step + 5, log)
    printed = program.printed(log)
    if "damaged" in printed or program.state_digest(run, step) != digest:
        return [f"the checkpoint of step {step} is not intact: {printed}"]
    return []

"""Faults of one of two processes of a run, and the behaviour of the other one."""

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import program
from benchmarks.faults.outcome import Outcome, complaints_about, words
from experiments.files import locked

_LIMIT_SECONDS = 120  # The heartbeat is 10 s; on a busy machine, starting takes the rest.


def terminate_one(folder: Path) -> Outcome:
    """Sends SIGTERM to one of two processes that train: both must save the same step."""
    run, log = folder / "run", folder / "log"
    processes = program.start_processes([program.command(run, program.SELDOM)] * 2, log)
    program.wait(processes[0], lambda: program.num_logged(run) >= 3, "the third step")
    started = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    codes, printed, seconds = _ends(processes, log, started)
    step = program.newest(run)
    complaints = complaints_about(codes, [4, 4], printed, f"at step {step}, which is saved")
    lost = f"nothing: both saved step {step}"
    name = "SIGTERM to one of two processes"
    return Outcome(name, 1, lost, complaints, words(codes), 1, seconds)


def kill_one(folder: Path, victim: int = 1) -> Outcome:
    """Kills one of two processes that train, and starts both again."""
    run, log = folder / "run", folder / "log"
    commands = [program.command(run)] * 2
    processes = program.start_processes(commands, log)
    program.wait_for_step(processes[0], run, 10)
    complaints, codes, seconds = _kill(processes, victim, log)
    before = program.newest(run)
    processes = program.start_processes(commands, log)
    program.wait_for_step(processes[0], run, before + 5)
    program.kill(*processes)
    name = f"kill -9 of the {('first', 'second')[victim]} of two processes that train"
    lost = f"the work since step {before}"
    return Outcome(name, 1, lost, complaints, words(codes), 1, seconds)


def kill_while_sampling(folder: Path, victim: int = 1) -> Outcome:
    """Kills one of two processes that draw samples."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 5, log)
    flags = ("--num_samples=5000000", "--config.evaluate.batch_size=8")
    processes = program.start_processes([program.command_of_mode("sample", run, *flags)] * 2, log)
    parts = run / "samples"
    program.wait(processes[0], lambda: len(list(parts.glob("*/*.npy"))) > 3, "the third part")
    complaints, codes, seconds = _kill(processes, victim, log)
    name = f"kill -9 of the {('first', 'second')[victim]} of two processes that sample"
    return Outcome(name, 1, "the part under way", complaints, words(codes), 1, seconds)


def split_workdirs(folder: Path) -> Outcome:
    """Gives two processes separate workdirs: only one has a run, or their checkpoints differ."""
    run, log = folder / "run", folder / "log"
    program.train_to(run, 10, log)
    complaints, codes, longest = [], [], 0.0
    shutil.copytree(run, folder / "older")
    shutil.rmtree(folder / "older" / "checkpoints" / "10")
    for other in ("empty", "older"):
        commands = [program.command(path) for path in (run, folder / other)]
        started = time.monotonic()
        ended, printed, seconds = _ends(program.start_processes(commands, log), log, started)
        codes += ended
        longest = max(longest, seconds)
        complaints += complaints_about(ended, [2, 2], printed, "one shared --workdir")
    if program.newest(run) != 10:
        complaints.append(f"the newest checkpoint was 10 and is {program.newest(run)}")
    name = "two processes with separate workdirs"
    return Outcome(name, 2, "nothing", complaints, words(codes), 1, longest)


def refuse_lock(folder: Path) -> Outcome:
    """Starts two processes in a workdir that is already in use."""
    run, log = folder / "run", folder / "log"
    run.mkdir()
    with locked(run / "lock", "the run", "wait"):
        started = time.monotonic()
        processes = program.start_processes([program.command(run)] * 2, log)
        codes, printed, seconds = _ends(processes, log, started)
    complaints = complaints_about(codes, [2, 2], printed)
    if "is in use by process" not in printed[0]:
        complaints.append(printed[0])
    name = "two processes in a workdir in use"
    return Outcome(name, 1, "nothing", complaints, words(codes), 1, seconds)


def exhaust_memory(folder: Path) -> Outcome:
    """Lets two processes run out of memory, in which case a restart does not help."""
    run, log = folder / "run", folder / "log"
    commands = [program.injected_command("memory=3", run)] * 2
    started = time.monotonic()
    codes, printed, seconds = _ends(program.start_processes(commands, log), log, started)
    complaints = complaints_about(codes, [2, 2], printed, "out of memory")
    name = "out of memory on two processes"
    return Outcome(name, 1, "the work since the last checkpoint", complaints, "2", 1, seconds)


def miss_first(folder: Path) -> Outcome:
    """Starts the second process of a run without a first one, as with a wrong port."""
    log, address = folder / "log", program.free_address()
    flags = (f"--coordinator_address={address}", "--num_processes=2", "--process_id=1")
    started = time.monotonic()
    process = program.start(program.command(folder / "run", None, *flags), log)
    try:
        program.wait(process, lambda: "waiting for" in log.read_text(), "a line")
        seconds = time.monotonic() - started
    finally:
        program.kill(process)
    expected = f"waiting for the first process of the run at {address}"
    complaints = [] if expected in program.printed(log) else [program.printed(log)]
    return Outcome(
        "wrong port", 1, "nothing: it reports the address it waits for", complaints, "", 1, seconds
    )


def _kill(
    processes: Sequence[Any], victim: int, log: Path
) -> tuple[list[str], list[int | None], float]:
    """Kills a process; returns complaints about the other one, its exit code, and the time."""
    program.kill(processes[victim])
    started = time.monotonic()
    codes, printed, seconds = _ends(
        [processes[1 - victim]], log.with_name(f"{log.name}.{1 - victim}"), started
    )
    message = "another process of the run has ended"
    return complaints_about(codes, [5], printed, message), codes, seconds


def _ends(
    processes: Sequence[Any], log: Path, started: float
) -> tuple[list[int | None], list[str], float]:
    """Waits for processes; returns their exit codes, their output, and the time."""
    codes: list[int | None] = []
    for process in processes:
        try:
            codes.append(process.wait(timeout=_LIMIT_SECONDS))
        except subprocess.TimeoutExpired:
            codes.append(None)
            program.kill(process)
    seconds = time.monotonic() - started
    logs = (
        [log.with_suffix(f".{i}") for i in range(len(processes))] if len(processes) > 1 else [log]
    )
    return codes, [program.printed(file) for file in logs], seconds

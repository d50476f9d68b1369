"""Ends of processes: kill -9, SIGTERM, and one of several that train together."""

import random
import signal
import time
from pathlib import Path

from benchmarks.faults import program
from benchmarks.faults.outcome import Outcome


def kill_at_random(folder: Path, times: int, seed: int = 0) -> Outcome:
    """Kills a run again and again, lets it end, and compares it with an uninterrupted one.

    One in four falls into the start of the program, the others into training and saving.
    """
    chance = random.Random(seed)
    run, log = folder / "run", folder / "killed"
    complaints, lost = [], []
    for _ in range(times):
        before = program.newest(run)
        process = program.start(program.command(run), log)
        if chance.random() < 0.25:
            time.sleep(chance.uniform(0.0, 3.0))
        else:
            program.wait_for_step(process, run, before + 5)
            time.sleep(chance.uniform(0.0, 0.5))
        program.kill(process)
        reached, after = _steps_told(log), program.newest(run)
        lost.append(max(0, reached - after))
        if after < before:
            complaints.append(f"step {after} where {before} had been saved")
        if "damaged" in program.told(log):
            complaints.append(program.told(log))
    last = program.newest(run) + 10
    seldom = {"checkpoint.every_steps": program.NEVER}
    if program.train_to(run, last, log) != program.train_to(folder / "whole", last, log, seldom):
        complaints.append(f"step {last} differs from that of the uninterrupted run")
    return Outcome(
        "kill -9 at random moments",
        times,
        f"at most {max(lost)} steps, since the last checkpoint; step {last} is equal bit for bit",
        complaints,
    )


def terminate(folder: Path) -> Outcome:
    """Sends SIGTERM to a run that saves seldom."""
    run, log = folder / "run", folder / "log"
    seldom = {"checkpoint.every_steps": program.NEVER, "log.every_steps": 1}
    process = program.start(program.command(run, seldom), log)
    program.wait(process, lambda: _lines(run) >= 3, "the third step")
    process.send_signal(signal.SIGTERM)
    code, step = process.wait(), program.newest(run)
    complaints = [] if code == 4 else [f"exit code {code}: {program.told(log)}"]
    if f"at step {step}, which is saved" not in program.told(log):
        complaints.append(f"it does not tell of step {step}: {program.told(log)}")
    return Outcome("SIGTERM", 1, f"nothing: step {step} is saved; exit code {code}", complaints)


def terminate_one_of_two(folder: Path) -> Outcome:
    """Sends SIGTERM to one of two processes that train together: both must save the same step."""
    run, log = folder / "run", folder / "log"
    seldom = {"checkpoint.every_steps": program.NEVER, "log.every_steps": 1}
    processes = program.start_processes(run, seldom, log)
    program.wait(processes[0], lambda: _lines(run) >= 3, "the third step")
    processes[1].send_signal(signal.SIGTERM)
    codes, step = [process.wait() for process in processes], program.newest(run)
    told = [program.told(log.with_suffix(f".{i}")) for i in range(2)]
    complaints = [] if codes == [4, 4] else [f"exit codes {codes}: {told}"]
    complaints += [text for text in told if f"at step {step}, which is saved" not in text]
    return Outcome(
        "SIGTERM to one of two processes", 1, f"nothing: both saved step {step}", complaints
    )


def kill_one_of_two(folder: Path, victim: int = 1) -> Outcome:
    """Kills one of two processes that train together, and starts both again."""
    run, log = folder / "run", folder / "log"
    processes = program.start_processes(run, {}, log)
    program.wait_for_step(processes[0], run, 10)
    program.kill(processes[victim])
    started = time.monotonic()
    code = processes[1 - victim].wait(timeout=120)
    seconds, told = time.monotonic() - started, program.told(log.with_suffix(f".{1 - victim}"))
    complaints = [] if "another" in told else [f"no clear message: {told}"]
    complaints += [] if code else ["the other process ended as if nothing had happened"]
    before = program.newest(run)
    processes = program.start_processes(run, {}, log)
    program.wait_for_step(processes[0], run, before + 5)
    program.kill(*processes)
    return Outcome(
        "kill -9 of one of two processes",
        1,
        f"the work since step {before}; the other ended after {seconds:.0f} s",
        complaints,
    )


def _lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _steps_told(log: Path) -> int:
    """Returns the last step that a progress bar showed."""
    bars = [word for word in log.read_bytes().split() if b"/" in word and word[:1].isdigit()]
    steps = [word.split(b"/")[0] for word in bars if word.endswith(str(program.NEVER).encode())]
    return max((int(step) for step in steps if step.isdigit()), default=0)

"""Faults that end one process: kill -9, SIGTERM and Ctrl-C."""

import random
import signal
import time
from pathlib import Path

from benchmarks.faults import program
from benchmarks.faults.outcome import Outcome, complaints_about


def kill_at_random(folder: Path, times: int, seed: int = 0) -> Outcome:
    """Kills a run many times, lets it finish, and compares it with an uninterrupted run.

    One kill in four happens while the program starts, the others during training and saving.
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
        reached, after = _step_shown(log), program.newest(run)
        lost.append(max(0, reached - after))
        if after < before:
            complaints.append(f"step {after}, but step {before} had been saved")
        if "damaged" in program.printed(log):
            complaints.append(program.printed(log))
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
    """Sends SIGTERM to a run that rarely saves."""
    run, log = folder / "run", folder / "log"
    process = program.start(program.command(run, program.SELDOM), log)
    program.wait(process, lambda: program.num_logged(run) >= 3, "the third step")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, step = process.wait(), program.newest(run)
    message = f"at step {step}, which is saved"
    complaints = complaints_about([code], [4], [program.printed(log)], message)
    seconds = time.monotonic() - started
    return Outcome("SIGTERM", 1, f"nothing: step {step} is saved", complaints, "4", 1, seconds)


def terminate_early(folder: Path) -> Outcome:
    """Sends SIGTERM while the first step is compiled, when there is nothing to save."""
    run, log = folder / "run", folder / "log"
    process = program.start(program.command(run, program.SELDOM), log, use_cache=False)
    program.wait(process, lambda: "compiling" in log.read_text(), "the first compilation")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    seconds, step = time.monotonic() - started, program.newest(run)
    expected = f"at step {step}, which is saved" if step else "before the first step"
    complaints = complaints_about([code], [4], [program.printed(log)], expected)
    return Outcome("SIGTERM while compiling", 1, "nothing", complaints, "4", 1, seconds)


def interrupt(folder: Path) -> Outcome:
    """Sends SIGINT, as Ctrl-C does: while the program is imported, compiles, and trains."""
    complaints, longest = [], 0.0
    for moment in ("importing", "compiling", "training"):
        run, log = folder / moment, folder / f"{moment}.log"
        fresh = moment == "importing"
        process = program.start(program.command(run), log, use_cache=False, fresh=fresh)
        if moment == "importing":
            # The thread that hears Ctrl-C is the first that the program starts.
            tasks = Path(f"/proc/{process.pid}/task")
            program.wait(process, lambda tasks=tasks: len(list(tasks.iterdir())) > 1, "its start")
        elif moment == "compiling":
            program.wait(process, lambda log=log: "compiling" in log.read_text(), "compilation")
            time.sleep(0.2)
        else:
            program.wait_for_step(process, run, 5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        code, printed = process.wait(), program.printed(log)
        longest = max(longest, time.monotonic() - started)
        wrong = complaints_about([code], [130], [printed])
        complaints += [f"while {moment}: {text}" for text in wrong]
        promises = "resumes from step" in printed
        if promises != bool(program.newest(run)):
            complaints.append(f"while {moment}: {program.newest(run)} is saved, but {printed}")
    return Outcome(
        "Ctrl-C while importing, compiling, training",
        3,
        "the work since the last checkpoint",
        complaints,
        "130",
        1,
        longest,
    )


def _step_shown(log: Path) -> int:
    """Returns the last step that a progress bar showed."""
    bars = [word for word in log.read_bytes().split() if b"/" in word and word[:1].isdigit()]
    steps = [word.split(b"/")[0] for word in bars if word.endswith(str(program.NEVER).encode())]
    return max((int(step) for step in steps if step.isdigit()), default=0)

"""Runs the real program on a small problem in separate processes, and reads what it saved."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEVER = 1_000_000_000
# Short steps that are saved often, so that a process is nearly always saving.
SMALL = {
    "train.num_steps": NEVER,
    "train.steps_per_dispatch": 1,
    "optimizer.schedule": "constant",
    "log.every_steps": 10,
    "checkpoint.every_steps": 5,
    "snapshot.every_steps": NEVER,
}
SELDOM = {"checkpoint.every_steps": NEVER, "log.every_steps": 1}  # A run that rarely saves.
_BAR = re.compile(r"\d+%\|.*\|")  # A progress bar of tqdm.
_DEADLINE_SECONDS = 600  # Long enough for a busy machine.
_PROGRAM = [sys.executable, "-m", "experiments.main"]
_INJECTED = [sys.executable, "-m", "benchmarks.faults.injected"]
# `ForkServer.start` while there is one, which spares the imports.
starter: Callable[..., Any] | None = None


def arguments(workdir: Path, changes: Mapping[str, object] | None = None, *flags: str) -> list[str]:
    """Returns the arguments that train the tiny swiss roll, or open such a run."""
    settings = SMALL | dict(changes or {})
    return [
        "--config=configs/swissroll.py:tiny",
        *(f"--config.{key}={value}" for key, value in settings.items()),
        *(f"--workdir={workdir}", *flags),
    ]


def command(workdir: Path, changes: Mapping[str, object] | None = None, *flags: str) -> list[str]:
    """Returns the command that trains the tiny swiss roll."""
    return [*_PROGRAM, *arguments(workdir, changes, *flags)]


def injected_command(
    fault: str, workdir: Path, changes: Mapping[str, object] | None = None
) -> list[str]:
    """Returns the command that trains with a fault of `benchmarks.faults.injected`."""
    return [*_INJECTED, fault, *arguments(workdir, changes)]


def command_of_mode(mode: str, workdir: Path, *flags: str) -> list[str]:
    """Returns the command of a mode that opens a run."""
    return [*_PROGRAM, f"--mode={mode}", f"--workdir={workdir}", *flags]


def environment(num_devices: int = 1) -> dict[str, str]:
    """Returns additional environment variables for a process of the program."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(
    arguments: Sequence[str],
    log: Path,
    num_devices: int = 1,
    *,
    use_cache: bool = True,
    fresh: bool = False,
) -> Any:
    """Starts a command with stderr redirected to a file.

    Args:
      arguments: the command.
      log: the file.
      num_devices: number of CPU devices.
      use_cache: whether programs that were compiled before are used; otherwise compiling takes
        seconds.
      fresh: whether it imports the program, also while there is a `ForkServer`.

    Returns:
      The process, as a `subprocess.Popen` or a `Forked`.
    """
    log.touch()  # A forked process opens it only later.
    if starter is not None and not fresh:
        if list(arguments[:3]) == _PROGRAM:
            return starter(arguments[3:], log, num_devices, use_cache=use_cache)
        if list(arguments[:3]) == _INJECTED:
            return starter(arguments[4:], log, num_devices, arguments[3], use_cache=use_cache)
    variables = environment(num_devices)
    if not use_cache:
        variables["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    with log.open("wb") as stream:
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )


def free_address() -> str:
    """Returns an address of this machine with a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start_processes(
    commands: Sequence[Sequence[str]], log: Path, num_devices: int = 2
) -> list[Any]:
    """Starts the processes of one run, each with its command, with CPU collectives.

    Stderr of process `i` is redirected to the file `log` with the suffix `.i`.
    """
    address = free_address()
    processes = []
    for i, arguments in enumerate(commands):
        together = (
            *(f"--coordinator_address={address}", f"--num_processes={len(commands)}"),
            *(f"--process_id={i}", "--heartbeat_seconds=10"),
        )
        processes.append(start([*arguments, *together], log.with_suffix(f".{i}"), num_devices))
    return processes


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps of complete checkpoints."""
    marks = (workdir / "checkpoints").glob("*/commit_success.txt")
    return sorted(int(mark.parent.name) for mark in marks if mark.parent.name.isdecimal())


def newest(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint; 0 if there is none."""
    return max(saved_steps(workdir), default=0)


def state_digest(workdir: Path, step: int) -> str:
    """Returns the hash of a saved state, computed in memory before it was saved."""
    text = (workdir / "checkpoints" / str(step) / "record" / "metadata").read_text()
    return str(json.loads(text)["state_sha256"])


def wait(process: Any, until: Callable[[], bool], what: str) -> None:
    """Waits for something that a process does."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not until():
        if process.poll() is not None:
            raise ChildProcessError(f"the process ended before {what}: {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {_DEADLINE_SECONDS} s")
        time.sleep(0.005)


def wait_for_step(process: Any, workdir: Path, step: int) -> None:
    """Waits until a process has saved a step."""
    wait(process, lambda: newest(workdir) >= step, f"step {step}")


def num_logged(workdir: Path) -> int:
    """Returns the number of lines of metrics of a run."""
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def train_to(
    workdir: Path,
    step: int,
    log: Path,
    changes: Mapping[str, object] | None = None,
    num_devices: int = 1,
) -> str:
    """Trains to a step without an evaluation, and returns the hash of the state."""
    arguments = command(workdir, dict(changes or {}) | {"train.num_steps": step})
    process = start(arguments, log, num_devices)
    try:
        wait_for_step(process, workdir, step)
    finally:
        kill(process)
    return state_digest(workdir, step)


def kill(*processes: Any) -> None:
    """Kills processes without warning, like a power failure."""
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def printed(log: Path) -> str:
    """Returns the output of a process without progress bars, which end in a carriage return."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if line.strip() and not _BAR.search(line))

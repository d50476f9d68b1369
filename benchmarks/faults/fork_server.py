"""Runs the program many times without importing it anew: one process forks for each command.

`ForkServer` starts this file in a process with the library of `injection.c` preloaded. It imports
the program, runs nothing of it, and forks for each request, so that each child has a counter of
file operations, a backend and an exit of its own, as if it had been started afresh.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.faults import program
from benchmarks.faults.injection import Fault

_ENV = "FDRL_FAULTS_LIBRARY"


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      code: exit code; negative for a signal; `None` if it had to be killed at the time limit.
      seconds: that it ran.
      log: what it printed on stderr.
    """

    code: int | None
    seconds: float
    log: str


class ForkServer:
    """Runs commands of the program under faults, one after the other; use in a `with` statement."""

    def __init__(self, library: Path) -> None:
        """Starts the server.

        Args:
          library: from `injection.compile_library`.
        """
        environment = {
            **os.environ,
            **program.environment(),
            "LD_PRELOAD": str(library),
            _ENV: str(library),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.fork_server"],
            cwd=program.ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # Closes its stdin, at whose end it ends.

    def run(
        self,
        arguments: Sequence[str],
        log: Path,
        fault: Fault | None = None,
        *,
        evaluates: bool = True,
        limit_seconds: float = 120.0,
    ) -> Ended:
        """Runs a command.

        Args:
          arguments: of the program.
          log: file for what it prints on stderr, replaced.
          fault: what to inject.
          evaluates: whether a training that ends is evaluated, as the program does.
          limit_seconds: after this long it is killed, with the stacks of its threads in the log.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the server has no pipes")
        request = {
            "arguments": list(arguments),
            "log": str(log),
            "fault": None if fault is None else fault.as_arguments(),
            "evaluates": evaluates,
            "limit_seconds": limit_seconds,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"the server ended with code {self._process.wait()}")
        return Ended(**json.loads(answer), log=program.printed(log))


def main() -> None:
    from experiments import main as experiments_main

    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(request)
            experiments_main.main(request["arguments"])
            return
        print(json.dumps(_wait(child, started, request["limit_seconds"])), flush=True)


def _import_all() -> None:
    """Imports what a command imports only when it needs it."""
    from experiments.modes import MODES

    for mode in MODES:
        importlib.import_module(f"experiments.modes.{mode}")


def _become(request: dict[str, Any]) -> None:
    """Makes a child of the server the process of a command."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file, number in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(file, number)
    faulthandler.enable()
    if not request["evaluates"]:
        from experiments.modes import evaluate

        evaluate.evaluate_last = lambda run, experiment: None
    if request["fault"] is not None:
        arm = ctypes.CDLL(os.environ[_ENV]).faults_arm
        encoded = [a.encode() if isinstance(a, str) else a for a in request["fault"]]
        arm.argtypes = [
            *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_char_p),
        ]
        arm(*encoded)


def _wait(child: int, started: float, limit_seconds: float) -> dict[str, Any]:
    code = None
    while code is None and time.monotonic() - started < limit_seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.01)
    seconds = time.monotonic() - started
    if code is None:
        os.kill(child, signal.SIGABRT)  # Prints the stacks of all threads.
        os.waitpid(child, 0)
    return {"code": code, "seconds": seconds}


if __name__ == "__main__":
    main()

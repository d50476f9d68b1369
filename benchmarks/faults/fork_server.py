"""Runs the program many times without importing it again, by forking one process per command.

`ForkServer` starts this file in a process. It imports the program without running it, and forks for
each request. Each child thus has its own backend, signals and exit, like a newly started program.
With the library of `injection.c` it also counts file operations.
"""

import contextlib
import ctypes
import faulthandler
import gc
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

import jax

from benchmarks.faults import program
from benchmarks.faults.injection import Fault

_LIBRARY = "FDRL_FAULTS_LIBRARY"


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      code: exit code; negative for a signal; `None` if it had to be killed at the time limit.
      seconds: how long it ran.
      log: its output on stderr.
    """

    code: int | None
    seconds: float
    log: str


class Forked:
    """A process of the program, with the methods of `subprocess.Popen` that faults need."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})["code"]
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """Starts commands of the program, also for `program.start`; use in a `with` statement."""

    def __init__(self, library: Path | None = None) -> None:
        """Starts the server.

        Args:
          library: the library from `injection.compile_library`; without it, there are no disk
            faults.
        """
        preloaded = {} if library is None else {"LD_PRELOAD": str(library), _LIBRARY: str(library)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.fork_server"],
            cwd=program.ROOT,
            env={**os.environ, **program.environment(), **preloaded},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        program.starter = self.start
        return self

    def __exit__(self, *_: object) -> None:
        program.starter = None
        self._process.communicate()  # Closes its stdin, which ends it.

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        num_devices: int = 1,
        injected: str = "",
        fault: Fault | None = None,
        *,
        evaluates: bool = True,
        use_cache: bool = True,
    ) -> Forked:
        """Starts a command.

        Args:
          arguments: arguments of the program.
          log: file for its output on stderr, which is replaced.
          num_devices: number of CPU devices.
          injected: a fault of `benchmarks.faults.injected`.
          fault: a fault of the disk.
          evaluates: whether a training that ends is evaluated, as the program does.
          use_cache: whether programs that were compiled before are used.
        """
        request = {
            "arguments": list(arguments),
            "log": str(log),
            "num_devices": num_devices,
            "injected": injected,
            "fault": None if fault is None else fault.as_arguments(),
            "evaluates": evaluates,
            "use_cache": use_cache,
        }
        return Forked(self, self.ask(request)["pid"])

    def run(
        self,
        arguments: Sequence[str],
        log: Path,
        fault: Fault | None = None,
        *,
        evaluates: bool = True,
        limit_seconds: float = 120.0,
    ) -> Ended:
        """Runs a command; at the time limit it is killed, and the log gets its stacks."""
        started = time.monotonic()
        process = self.start(arguments, log, fault=fault, evaluates=evaluates)
        code: int | None = None
        try:
            code = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.wait()
        return Ended(code, time.monotonic() - started, program.printed(log))

    def ask(self, request: dict[str, Any]) -> Any:
        """Sends a request to the server and returns its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the server has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError(f"the server has ended with code {self._process.wait()}")
        return json.loads(answer)


def main() -> None:
    from experiments import main as experiments_main

    _import_all()
    gc.freeze()  # Otherwise each child looks through all of it, and copies its memory.
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            print(json.dumps({"code": _poll(request["poll"])}), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _become(request)
            experiments_main.main(request["arguments"])
            return
        print(json.dumps({"pid": child}), flush=True)


def _import_all() -> None:
    """Imports the modules that commands import on demand."""
    from experiments.modes import MODES

    for mode in MODES:
        importlib.import_module(f"experiments.modes.{mode}")


def _poll(child: int) -> int | None:
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(request: dict[str, Any]) -> None:
    """Turns a child of the server into the process of a command."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file, number in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(file, number)
    os.environ.update(program.environment(request["num_devices"]))
    faulthandler.enable()
    jax.config.update("jax_enable_compilation_cache", request["use_cache"])
    if request["injected"]:
        from benchmarks.faults import injected

        injected.inject(request["injected"])
    if not request["evaluates"]:
        from experiments.modes import evaluate

        evaluate.evaluate_last = lambda run, experiment: None
    if request["fault"] is not None:
        arm = ctypes.CDLL(os.environ[_LIBRARY]).faults_arm
        encoded = [a.encode() if isinstance(a, str) else a for a in request["fault"]]
        arm.argtypes = [
            *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_char_p),
        ]
        arm(*encoded)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

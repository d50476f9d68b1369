"""Runs the program with a thread that records its resources, for `benchmarks.long_run`.

Run: python -m benchmarks.long_run_process NOTES.jsonl EVERY_SECONDS, then the program's flags.
"""

import ctypes
import json
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any

MIB = 2**20


def main() -> None:
    notes, every, *flags = sys.argv[1:]
    workdir = next(flag.partition("=")[2] for flag in flags if flag.startswith("--workdir="))
    arguments = (Path(notes), float(every), Path(workdir))
    threading.Thread(target=watch, args=arguments, daemon=True).start()
    sys.argv = ["experiments.main", *flags]
    runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)


def watch(notes: Path, every: float, workdir: Path) -> None:
    """Appends a record every few seconds."""
    log, started = workdir / "commands.jsonl", time.time()
    # Waits until training begins, because JAX must not start before the program has set its flags.
    while not (log.exists() and log.stat().st_mtime > started):
        time.sleep(0.1)
    with notes.open("a") as file:
        while True:
            file.write(json.dumps(note(workdir)) + "\n")
            file.flush()
            time.sleep(every)


def note(workdir: Path) -> dict[str, Any]:
    """Returns the resources that the process uses now."""
    import jax

    # The C library keeps freed memory for reuse, which must not count as growth of the program.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    metrics = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    checkpoints = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    return {
        "time": time.time(),
        "pid": os.getpid(),
        "host_mib": int(resident.split()[1]) / 1_024,
        "device_mib": sum(array.nbytes for array in jax.live_arrays()) / MIB,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "checkpoints": len(checkpoints),
        "step": json.loads(metrics[-1])["step"] if metrics else 0,
    }


if __name__ == "__main__":
    main()

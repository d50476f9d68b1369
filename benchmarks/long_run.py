"""Checks a long training on digits, killed and restarted halfway, for leaks and lost metrics.

Run: python -m benchmarks.long_run --minutes=30 [--json=FILE] [--picture=FILE.png]
The program trains in a separate process. Every few seconds, a thread of that process records host
memory, bytes of arrays on the devices, open files, threads and checkpoints. Halfway, the process is
killed by SIGKILL, as by a power failure, and the same command is started again. The exit code is 1
if, after a warm-up, memory or arrays grow faster than --max_growth, the number of open files or
threads grows, there are more checkpoints than the config keeps, or the metrics have a duplicate
line or a gap. Linux only.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.files import write_json

LOG_STEPS, CHECKPOINT_STEPS, KEEP = 10, 50, 3
_FLAGS = {
    "train.num_steps": 1_000_000_000,
    "optimizer.schedule": "constant",
    "log.every_steps": LOG_STEPS,
    "checkpoint.every_steps": CHECKPOINT_STEPS,
    "checkpoint.keep": KEEP,
    "snapshot.every_steps": 500,
}
WARM_UP = 0.25  # Share of the time of a process that is ignored.


def main() -> None:
    """Prints the growth of both processes, and exits with code 1 if it is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="time of both processes")
    parser.add_argument("--workdir", help="folder of the run; by default a temporary one")
    parser.add_argument("--every_seconds", type=float, default=5.0, help="interval of records")
    parser.add_argument("--max_growth", type=float, default=1.0, help="MiB per minute")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, help="also plot the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(arguments.workdir or scratch)
        notes = train_twice(workdir, arguments.minutes * 60, arguments.every_seconds)
        faults = faults_of_metrics(workdir / "metrics.jsonl")
    result = judge(notes, faults, arguments.max_growth)
    print(json.dumps({k: v for k, v in result.items() if k != "notes"}, indent=2))
    if arguments.json:
        write_json(arguments.json, result)
    if arguments.picture:
        draw(notes, arguments.picture)
    sys.exit(bool(result["faults"]))


def train_twice(workdir: Path, seconds: float, every: float) -> list[dict[str, Any]]:
    """Trains, kills the process halfway, resumes, and returns the records of both processes."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "notes.jsonl"
    command = [
        *(sys.executable, "-m", "benchmarks.long_run_process", str(file), str(every)),
        *("--config=configs/digits.py", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in _FLAGS.items()),
    ]
    for part in range(2):
        with (workdir / f"errors_{part}.txt").open("w") as errors:
            process = subprocess.Popen(command, stderr=errors)
            try:
                code = process.wait(seconds / 2)
                raise SystemExit(f"training ended by itself with code {code}: see {errors.name}")
            except subprocess.TimeoutExpired:
                pass
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return [json.loads(line) for line in file.read_text().splitlines()]


def faults_of_metrics(path: Path) -> list[str]:
    """Returns complaints about duplicate or missing lines of metrics."""
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    due = [LOG_STEPS * (i + 1) for i in range(len(steps))]
    wrong = [f"{got} for {want}" for got, want in zip(steps, due, strict=True) if got != want]
    return [f"metrics.jsonl: step {wrong[0]} and {len(wrong) - 1} more"] if wrong else []


def judge(notes: list[dict[str, Any]], faults: list[str], max_growth: float) -> dict[str, Any]:
    """Fits the growth of each process after its warm-up, and lists what exceeds its limit."""
    processes = []
    for pid in dict.fromkeys(note["pid"] for note in notes):
        own = [note for note in notes if note["pid"] == pid]
        own = own[int(WARM_UP * len(own)) :]
        minutes = [note["time"] / 60 for note in own]
        figures = {"minutes": minutes[-1] - minutes[0], "steps": own[-1]["step"]}
        for name in ("host_mib", "device_mib"):
            values = [note[name] for note in own]
            # The Theil-Sen slope, the median over all pairs, is robust to peaks.
            growth = stats.theilslopes(values, minutes).slope
            figures |= {name: float(np.median(values)), f"{name}_a_minute": float(growth)}
            if growth > max_growth:
                faults = [*faults, f"{name} grows by {growth:.2f} MiB per minute"]
        for name in ("open_files", "threads"):
            # Medians over both halves of the time, because a save briefly needs some more.
            half = len(own) // 2
            parts = (own[:half], own[half:])
            first, second = (float(np.median([n[name] for n in part])) for part in parts)
            figures |= {name: [first, second]}
            if second > first:
                faults = [*faults, f"{name} increased from {first} to {second}"]
        processes.append(figures)
    most = max(note["checkpoints"] for note in notes)
    # One more is allowed while the oldest is being removed.
    if most > KEEP + 1:
        faults = [*faults, f"{most} checkpoints, but {KEEP} should be kept"]
    return {"processes": processes, "most_checkpoints": most, "faults": faults, "notes": notes}


def draw(notes: list[dict[str, Any]], path: Path) -> None:
    """Draws memory, open files and checkpoints over time."""
    from experiments.pictures import style

    figure, axes = style.panels(3, size=3.0)
    start = notes[0]["time"]
    minutes = np.array([(note["time"] - start) / 60 for note in notes])
    pids = np.array([note["pid"] for note in notes])

    def plot(panel: Any, name: str, label: str, color: str, scale: float = 1.0) -> None:
        values = scale * np.array([note[name] for note in notes])
        for pid in dict.fromkeys(pids):
            own = pids == pid
            panel.plot(minutes[own], values[own], color=color, label=label)
            label = ""

    plot(axes[0], "host_mib", "process", style.DATA)
    plot(axes[0], "device_mib", "arrays on the device", style.SAMPLES)
    axes[0].set_title("Memory, MiB")
    plot(axes[1], "open_files", "open files", style.DATA)
    plot(axes[1], "threads", "threads", style.SAMPLES)
    axes[1].set_title("Open files and threads")
    plot(axes[2], "checkpoints", "checkpoints on disk", style.DATA)
    plot(axes[2], "step", "thousands of steps", style.SAMPLES, scale=1e-3)
    axes[2].set_title("Checkpoints and steps")
    restart = minutes[pids == pids[-1]][0]
    for panel in axes:
        panel.axvline(restart, color=style.PRIOR, linestyle=":", label="restarted after a kill")
        panel.set(xlabel="minutes", ylim=(0, None))
        panel.legend(fontsize=7)
    style.save(figure, path)


if __name__ == "__main__":
    main()

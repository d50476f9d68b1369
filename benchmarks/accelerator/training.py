"""A training of the program itself, on real data: images per second, and a picture."""

import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.speed import Scale
from experiments import log

_STOPPED = 4  # Exit code of a training that was asked to stop, and saved its state.


def train(scale: Scale, folder: Path, data_dir: str, seconds: float) -> dict[str, Any]:
    """Trains for these seconds, then draws samples of the last checkpoint into a picture.

    `data_dir` is a folder or zip of images, or what TFDS has written; "" for built-in data.
    """
    # A new folder, because a run that is there would be continued.
    workdir = Path(tempfile.mkdtemp(prefix="run_", dir=folder), "run")
    changes = [f"--config.{key}={value}" for key, value in scale.changes.items()]
    command = [f"--config={scale.config}", f"--workdir={workdir}", *changes]
    if data_dir:
        command.append(f"--data_dir={data_dir}")
        if not Path(data_dir, scale.config).is_dir():  # Not a set that TFDS has prepared.
            command.append("--config.data.name=folder")
    code = _run(command, seconds * 0.8)
    logged = log.read(workdir / "metrics.jsonl")
    if code not in (0, _STOPPED) or not logged:
        return {"error": f"training ended with code {code}: {shlex.join(command)}"}
    rates = [line["examples_per_second"] for line in logged if "examples_per_second" in line]
    found = {
        "steps": logged[-1]["step"],
        "loss": logged[-1]["loss"],
        # The first line includes compilation.
        "images_per_second": float(np.median(rates[1:] or rates)),
    }
    drawing = ["--mode=sample", f"--workdir={workdir}", f"--num_samples={scale.num_samples}"]
    if _run(drawing, max(seconds * 0.2, scale.min_training_seconds)) == 0:
        (picture,) = (workdir / "samples").glob("*.png")
        found["picture"] = shutil.copy(picture, folder / "samples.png").name
    return found


def _run(arguments: list[str], seconds: float) -> int | None:
    """Runs the program, asks it to stop after a time, and returns its exit code."""
    command = [sys.executable, "-m", "experiments.main", *arguments]
    with subprocess.Popen(command) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(60.0)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

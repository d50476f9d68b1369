"""A training of the program itself, on real data: images per second, gaps, and a picture."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import trace
from benchmarks.accelerator.budget import Scale
from experiments import build, command_line, settings
from experiments.data import DataOptions, load_if_given
from experiments.machine import hardware
from experiments.training import metrics_log
from fdrl_jax.training import parallel

_NUM_PROFILED = 3  # Dispatches.
_STOPPED = 4  # Exit code of a training that was asked to stop, and saved its state.


def host_gaps(scale: Scale) -> dict[str, Any]:
    """Profiles the train step of the config as training dispatches it, one after the other."""
    wanted = settings.checked(command_line.load_config(scale.config) | scale.changes)
    used = hardware.prepare(wanted)
    source, _ = load_if_given(DataOptions(**settings.section(used, "data")))
    experiment = build.experiment(used, source)
    training = build.ratio_training(experiment)
    num, dispatch = parallel.num_devices(), used["train.steps_per_dispatch"]
    _, _, _, shapes, *_ = training.argument_shapes(num)
    host_batches = jax.tree.map(lambda s: np.zeros((num, *s.shape), s.dtype), shapes)
    run_steps = parallel.map_steps(training.repeated_step())
    key, state, *others = training.blank_arguments(host_batches, dispatch)

    def run() -> None:
        nonlocal state
        for _ in range(_NUM_PROFILED):
            state, _ = run_steps(key, state, *others)
        jax.block_until_ready(state)

    run()  # Compiles.
    return {"device_idle_share": trace.device_idle_share(run), "steps_per_dispatch": dispatch}


def train(scale: Scale, folder: Path, data_dir: str, seconds: float) -> dict[str, Any]:
    """Trains for a time, then draws samples of the last checkpoint into a picture.

    Args:
      scale: what is trained.
      folder: of the run and the picture.
      data_dir: where the data are; "" where the config names built-in ones.
      seconds: for training and samples together.
    """
    workdir = folder / "run"
    changes = [f"--config.{key}={value}" for key, value in scale.changes.items()]
    command = [f"--config={scale.config}", f"--workdir={workdir}", *changes]
    if data_dir:
        command.append(f"--data_dir={data_dir}")
        if not Path(data_dir, scale.config).is_dir():  # Not a set that TFDS has prepared.
            command.append("--config.data.name=folder")
    code = _run(command, seconds * 0.8)
    logged = metrics_log.read(workdir / "metrics.jsonl")
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
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 60.0:
            time.sleep(0.5)
        process.kill()
        return process.wait()

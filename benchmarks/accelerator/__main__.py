"""Everything that is worth knowing of one accelerator, in a few minutes.

Run: python -m benchmarks.accelerator [--folder=DIR] [--minutes=8] [--data_dir=CIFAR10] [--small]
It measures each network in each precision next to PyTorch where that is installed, compares with
float64, and trains with what is left of the time. The most important comes first, and what the time
does not allow is listed as skipped. Writes `accelerator.json`, `accelerator.md` and a picture. Ends
with code 1 if the device computes something wrongly. `--small` is for a CPU, to see that it works.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import fdrl_jax
from benchmarks.accelerator import agreement, page, speed, training
from benchmarks.accelerator.speed import FULL, SMALL, Scale
from benchmarks.estimators import pytorch
from experiments import devices as precision_lib
from experiments.files import write_json, write_text

# Shares of the time that are kept for what follows.
_FOR_TRAINING, _FOR_PYTORCH = 0.35, 0.15


def main() -> None:
    """Measures, and writes after every part, so that an interruption loses little."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("accelerator"), help="for all files")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, for everything")
    parser.add_argument("--data_dir", default="", help="CIFAR-10: folder or zip of images, or TFDS")
    parser.add_argument("--small", action="store_true", help="everything in seconds, for a CPU")
    arguments = parser.parse_args()
    precision_lib.set_cpu_flags()
    # PyTorch and the training are other processes on the same GPU, of which JAX would take 75%.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    scale = SMALL if arguments.small else FULL
    started, whole = time.monotonic(), 60.0 * arguments.minutes

    def left() -> float:
        return started + whole - time.monotonic()

    results: dict[str, Any] = {
        "device": precision_lib.describe_devices().removeprefix("devices: "),
        "num_devices": jax.device_count(),
        "version": fdrl_jax.__version__,
        "small": arguments.small,
        "config": scale.config,
        "batch_size": scale.batch_size,
        "num_flow_steps": scale.num_flow_steps,
        "peaks": {},
        "speed": [],
        "pytorch": [],
        "agreement": [],
        "skipped": [],
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        results["seconds"] = time.monotonic() - started
        write_json(arguments.folder / "accelerator.json", results)
        write_text(arguments.folder / "accelerator.md", page.page(results))

    if importlib.util.find_spec("torch") is None:
        results["skipped"].append("PyTorch, which is not installed")
    for name in scale.networks:
        _measure(name, scale, lambda: left() / max(whole, 1.0), results)
        save()
    if scale is FULL and not arguments.data_dir:
        results["skipped"].append("training: --data_dir=CIFAR10 is missing")
    else:
        seconds = max(left() - 15.0, scale.min_training_seconds)
        results["training"] = training.train(scale, arguments.folder, arguments.data_dir, seconds)
    save()
    print(page.page(results))
    wrong = [row for row in results["agreement"] if not max(row["errors"].values()) <= row["bound"]]
    sys.exit(bool(wrong))


def _measure(
    name: str, scale: Scale, share_left: Callable[[], float], results: dict[str, Any]
) -> None:
    """Measures a network in each precision, as far as the time allows."""
    has_torch = importlib.util.find_spec("torch") is not None
    for precision in scale.precisions:
        what = f"{name} in {precision}"
        if share_left() <= _FOR_TRAINING + _FOR_PYTORCH:
            results["skipped"].append(what)
            continue
        print(f"{what}: {share_left():.0%} of the time left", file=sys.stderr)
        if precision not in results["peaks"]:
            results["peaks"][precision] = speed.peak(precision, scale.matrix_size, scale.rounds)
        found = speed.measure(name, precision, scale)
        results["speed"].append({"network": name, "precision": precision, **found})
        errors = agreement.compare(name, precision, scale.num_exact_images)
        bound = agreement.BOUNDS[precision]
        results["agreement"].append(
            {"network": name, "precision": precision, "errors": errors, "bound": bound}
        )
        for compiled in scale.torch_compile if has_torch else ():
            if share_left() <= _FOR_TRAINING:
                results["skipped"].append(f"PyTorch, {what}")
                continue
            _compare_with_pytorch(found, name, precision, compiled, scale, results)


def _compare_with_pytorch(
    found: dict[str, float],
    name: str,
    precision: str,
    compiled: bool,
    scale: Scale,
    results: dict[str, Any],
) -> None:
    try:
        with pytorch(
            sys.executable,
            speed.network(name),
            scale.batch_size,
            precision,
            compiled,
            scale.num_flow_steps,
        ) as contenders:
            # As for ours: a median would be longer than the least time of the same function.
            seconds = {
                name: speed.least_seconds(run, scale.rounds) for name, run in contenders.items()
            }
    except RuntimeError as error:  # Such as `torch.compile` without a C++ compiler.
        form = "torch.compile" if compiled else "eager"
        results["skipped"].append(f"PyTorch ({form}), {name} in {precision}: {error}")
        return
    if seconds:
        results["pytorch"].append(
            {
                "network": name,
                "precision": precision,
                "compiled": compiled,
                **{
                    f"{what}_ratio": seconds[f"pytorch_{what}"] / found[f"{what}_seconds"]
                    for what in ("flow", "train")
                },
            }
        )


if __name__ == "__main__":
    main()

"""FDRL as it ships and flow matching with the same CPU seconds on the same images.

Run: taskset -c 0 python -m benchmarks.race --data=MNIST.zip --task=mnist --budgets 600 --seeds 1 2
The zip has one folder of PNG or JPEG files per class. Each contestant appends a line per judge to
the results, as in docs/results.jsonl, and one that has its lines is skipped. A budget is in CPU
seconds of one process, so compare lines of one machine only. Without --data, the lines are printed.
"""

import argparse
import ast
import itertools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.race import data, judges, methods, rows, training
from experiments import devices
from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.files import append_line
from experiments.pictures.images import square

TASKS = {"mnist": "MNIST", "cifar10": "CIFAR-10"}  # Their names in rows.


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="zip of images")
    add("--task", default="mnist", choices=methods.CONFIGS, help="which recipe is raced")
    add("--methods", nargs="+", default=list(methods.METHODS), choices=methods.METHODS)
    add("--budgets", type=float, nargs="+", default=[600.0], help="CPU seconds")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the rivals")
    add("--num_samples", type=int, default=2_000)
    add("--machine", default="", help="its name in the results")
    add("--judge", default="", metavar="FLAGS", help="of the program, for the classifier")
    add("--cache", type=Path, default=Path("runs/race"), help="folder of judge and samples")
    add("--results", type=Path, default=Path("runs/race/results.jsonl"))
    arguments = parser.parse_args(argv)
    try:
        changes = {k: ast.literal_eval(v) for k, v in (c.split("=", 1) for c in arguments.set)}
        if arguments.data:
            _race(arguments, changes, argv)
        print(*map(rows.line, rows.read(arguments.results, TASKS[arguments.task])), sep="\n")
    except (OSError, UserError, ValueError, SyntaxError) as error:
        parser.error(str(error))


def _race(arguments: argparse.Namespace, changes: dict[str, Any], argv: list[str] | None) -> None:
    devices.set_cpu_flags(bfloat16=True)
    images = data.load(arguments.data)
    cache = arguments.cache / arguments.task
    file = images.write("contestants", cache / "contestants.npz")
    num = arguments.num_samples
    opened = judges.open_judges(arguments.task, images, cache, shlex.split(arguments.judge), num)
    print(f"the judge classifies {opened.accuracy:.2%} of held-out images correctly", flush=True)
    real = opened.figures(images.contestants.pixels[:num])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    fixed = {
        "task": TASKS[arguments.task],
        "machine": arguments.machine or devices.describe_devices().removeprefix("devices: "),
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "-m", "benchmarks.race", *(argv or sys.argv[1:])]),
    }
    known = rows.read(arguments.results, fixed["task"])
    runs = itertools.product(arguments.budgets, arguments.seeds, arguments.methods)
    for budget, seed, method in runs:
        settings = {} if method == "fdrl" else changes
        of_run = {"contestant": method, "settings": settings, "budget": f"{budget:g} CPU s"}
        of_run |= {"seed": seed, **fixed}
        if any(all(row.get(key) == of_run[key] for key in rows.RUN) for row in known):
            continue
        contestant = methods.build(method, arguments.task, file, seed, settings)
        trained = training.train(contestant, budget)
        of_run |= {"steps": trained.num_steps, "cpu_seconds": round(trained.cpu_seconds, 1)}
        prior: dict[str, float] = {}
        for entry in contestant.entries(trained.training):
            pixels, milliseconds = training.draw(trained, entry.sampler, num)
            stem = f"{entry.method}-{entry.number}-{budget:g}-{seed}"
            np.savez_compressed(cache / f"{stem}.npz", arr_0=pixels)
            Image.fromarray(square(to_unit(pixels[:100])).squeeze()).save(cache / f"{stem}.png")
            found = opened.figures(pixels)
            prior = found if entry.method == "prior" else prior
            changed = "".join(f", {key}={value}" for key, value in settings.items())
            of_entry = {"method": rows.NAMES[entry.method] + changed, entry.unit: entry.number}
            of_entry |= {**of_run, "ms_per_sample": round(milliseconds, 3)}
            for row in rows.of_entry(of_entry, found, prior, real, opened.names):
                append_line(arguments.results, row)


if __name__ == "__main__":
    main()

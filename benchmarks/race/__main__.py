"""FDRL as it ships and flow matching with the same CPU seconds on the same images.

Run: taskset -c 0 python -m benchmarks.race --data=MNIST.zip --task=mnist --budgets 600 --seeds 1 2
The zip has one folder of PNG or JPEG files per class: 70% of the images train the contestants, 20%
the classifier that judges, and samples are compared with the other 10%. Each contestant appends a
line per figure to the results, and one that has its lines is skipped. A budget is in CPU seconds of
one process, so compare lines of one machine only. To tune the rivals, change their settings:
  python -m benchmarks.race --data=... --methods flow_matching --set learning_rate=1e-3
To print the table of the results: python -m benchmarks.race --task=mnist
"""

import argparse
import ast
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.race import data, judges, methods, page, training
from experiments import devices
from experiments.data.decode import to_unit
from experiments.errors import UserError
from experiments.files import append_line
from experiments.pictures.images import square


def main(argv: list[str] | None = None) -> None:
    """Carries out what the results lack, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="zip of images; without it, nothing is run")
    add("--task", default="mnist", choices=methods.CONFIGS, help="which recipe is raced")
    add("--methods", nargs="+", default=list(methods.METHODS), choices=methods.METHODS)
    add("--budgets", type=float, nargs="+", default=[600.0], help="CPU seconds")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the rivals")
    add("--num_samples", type=int, default=2_000)
    add("--judge", default="", metavar="FLAGS", help="of the program, for the classifier")
    add("--cache", type=Path, default=Path("runs/race"), help="folder of judge and samples")
    add("--results", type=Path, default=Path("runs/race/results.jsonl"))
    arguments = parser.parse_args(argv)
    try:
        changes = {k: ast.literal_eval(v) for k, v in (c.split("=", 1) for c in arguments.set)}
        if arguments.data:
            _race(arguments, changes)
        print(page.table(page.read(arguments.results, arguments.task)))
    except (OSError, UserError, ValueError, SyntaxError) as error:
        parser.error(str(error))


def _race(arguments: argparse.Namespace, changes: dict[str, Any]) -> None:
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
        "task": arguments.task,
        "machine": devices.describe_devices().removeprefix("devices: "),
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "-m", "benchmarks.race", *sys.argv[1:]]),
        "settings": changes,
        "judge_accuracy": opened.accuracy,
    }
    known = page.read(arguments.results, arguments.task)
    for budget in arguments.budgets:
        for seed in arguments.seeds:
            for method in arguments.methods:
                of_run = {"budget": budget, "seed": seed, "contestant": method, **fixed}
                if any(all(r.get(k) == of_run[k] for k in page.RUN) for r in known):
                    continue
                of_method = changes if method != "fdrl" else {}
                contestant = methods.build(method, arguments.task, file, seed, of_method)
                trained = training.train(contestant, budget)
                of_run |= {"steps": trained.num_steps, "cpu_seconds": trained.cpu_seconds}
                prior: dict[str, float] = {}
                for name, (passes, sampler) in contestant.samplers(trained.training).items():
                    pixels, milliseconds = training.draw(contestant, trained, sampler, num)
                    _keep(cache / f"{name}-{budget:g}-{seed}", pixels)
                    found = opened.figures(pixels)
                    prior = prior or (found if name == "prior" else {})
                    of_run |= {"method": name, "passes": passes, "milliseconds": milliseconds}
                    for metric, value in found.items():
                        more = {"value": value, "prior": prior.get(metric), "real": real[metric]}
                        append_line(arguments.results, {**of_run, "metric": metric, **more})


def _keep(stem: Path, pixels: np.ndarray) -> None:
    """Writes samples, and a picture of the first hundred."""
    np.savez_compressed(stem.with_suffix(".npz"), arr_0=pixels)
    Image.fromarray(square(to_unit(pixels[:100])).squeeze()).save(stem.with_suffix(".png"))


if __name__ == "__main__":
    main()

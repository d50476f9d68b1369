r"""Runs a config with several changes and seeds, one run after the other, and compares them.

A sweep file has a function `get_sweep()` that returns a dictionary with the `config` of all runs,
and `groups`: changes to it by dotted key, by name of the run, by name of the group; each group is a
table. It may have `settings`, changes for all runs; `seeds`, with each of which every run is
repeated; and `metrics` to show, by default all that differ. Each run has a folder in the sweep's.
Rerun to resume: finished runs are skipped. A run that fails is reported in the table, and the sweep
then ends with code 2.

Try: python -m experiments.sweep --sweep=configs/sweeps/ablation_digits.py --workdir=runs/ablation
"""

import argparse
import csv
import io
import itertools
import re
import runpy
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import main as program
from experiments import settings
from experiments.errors import UserError, ending_in_one_line, first_line
from experiments.evaluation.metrics import format_value
from experiments.files import locked, read_json, write_text
from experiments.settings import Flat, Settings

_KEYS = ("config", "groups", "settings", "seeds", "metrics")
# The program, to which Linux sends SIGTERM (15) if the sweep is killed; 1 is PR_SET_PDEATHSIG.
_PROGRAM = """
import ctypes, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
"""


class Planned(NamedTuple):
    """A run of a sweep."""

    group: str
    name: str
    seed: int
    changes: Flat  # To the config file, with the seed.
    settings: Settings  # With these changes.
    is_fitted: bool  # Whether the config depends on device and data; `settings` ignore these.
    folder: Path  # Runs with equal changes in two groups share it.


class Outcome(NamedTuple):
    """How a run ended: why it has no metrics, or "", and its metrics."""

    remark: str
    metrics: dict[str, float]


def read(path: Path) -> dict[str, Any]:
    """Runs a sweep file, and returns its sweep."""
    try:
        return dict(runpy.run_path(str(path))["get_sweep"]())
    except Exception as error:  # A user's code may raise anything.
        raise UserError(f"--sweep={path}: {first_line(error)}") from error


def plan(sweep: Mapping[str, Any], root: Path) -> list[Planned]:
    """Lists the runs of a sweep, and checks all their values before any of them starts.

    Seeds are the outer loop, so that a sweep that is stopped halfway has all runs for some seeds.
    """
    if set(sweep) - set(_KEYS) or not {"config", "groups"} <= set(sweep):
        raise UserError(f"the sweep has the keys {', '.join(sweep)}; allowed: {', '.join(_KEYS)}")
    for name in ("seeds", "metrics"):
        if not isinstance(sweep.get(name, ()), (list, tuple, range)):
            raise UserError(f"{name} of the sweep must be a list, got {sweep[name]!r}")
    seeds = tuple(sweep.get("seeds", (0,)))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"the sweep has equal seeds, whose runs would be equal: {seeds}")
    read_config, config_for = program.read_config(sweep["config"])
    config = read_config.to_dict()
    folders: dict[str, Path] = {}
    planned = []
    named = [(g, name, own) for g, of in sweep["groups"].items() for name, own in of.items()]
    for seed, (group, name, own) in itertools.product(seeds, named):
        changes = {**sweep.get("settings", {}), **own}
        if "seed" in changes:
            raise UserError(f"{name!r} of the sweep sets seed; list seeds under 'seeds'")
        changes |= {"seed": seed}
        wanted = settings.from_config({**config, **changes})
        parts = (re.sub(r"[^\w.=+-]+", "_", part).strip("_.") or "_" for part in (group, name))
        folder = root.joinpath(*parts, f"seed_{seed}")
        key = repr(sorted(changes.items()))
        if key not in folders and folder in folders.values():
            raise UserError(f"two runs of the sweep would share {folder}; rename {name!r}")
        folder = folders.setdefault(key, folder)
        of_device = config_for is not None
        planned.append(Planned(group, name, seed, changes, wanted, of_device, folder))
    return planned


def run_one(config: str, of: Planned) -> Outcome:
    """Trains and evaluates a run in a process of its own, unless it has an evaluation."""
    output = of.folder / "output.txt"
    if not (found := _metrics(of)):
        print(of.folder, flush=True)
        of.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _PROGRAM, f"--config={config}"]
        command += [f"--config.{key}={value}" for key, value in of.changes.items()]
        command += [f"--workdir={of.folder}"]
        with output.open("w") as file:
            # A session of its own, so that Ctrl-C reaches it only once.
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                process.wait()
            except BaseException:
                process.terminate()
                process.wait()  # It saves its state first.
                raise
        found = _metrics(of)
    if found:
        return Outcome("", found)
    # Progress bars overwrite their line. A kill may cut a character in two.
    lines = re.split(r"[\r\n]+", output.read_text(errors="replace").strip())
    return Outcome(lines[-1].removeprefix("error: ") or f"ended with {process.returncode}", {})


def markdown(
    planned: Sequence[Planned], outcomes: Sequence[Outcome], metrics: Sequence[str]
) -> str:
    """Returns one table per group, with means and standard deviations over seeds."""
    tables = []
    for group in dict.fromkeys(of.group for of in planned):
        lines = [[group, "runs", *metrics, "remarks"], ["---"] * (len(metrics) + 3)]
        for name in dict.fromkeys(of.name for of in planned if of.group == group):
            pairs = zip(planned, outcomes, strict=True)
            own = [(of, found) for of, found in pairs if (of.group, of.name) == (group, name)]
            values = [[o.metrics[m] for _, o in own if m in o.metrics] for m in metrics]
            remarks = [f"seed {of.seed}: {o.remark}" for of, o in own if o.remark]
            remark = "; ".join(remarks).replace("|", "\\|")
            lines.append([name, str(len(own)), *map(_summary, values), remark])
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables) + "\n"


def table(planned: Sequence[Planned], outcomes: Sequence[Outcome]) -> str:
    """Returns CSV with one line per run, with its changes and metrics."""
    rows = [
        {"group": of.group, "name": of.name, "folder": of.folder, "remark": found.remark}
        | {f"config.{key}": value for key, value in of.changes.items()}
        | found.metrics
        for of, found in zip(planned, outcomes, strict=True)
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _metrics(of: Planned) -> dict[str, float]:
    """Returns the metrics of a run's last step; empty if it has not finished or is another run."""
    record = of.folder / "run.json"  # Opening the run would occupy the accelerator.
    if not record.is_file():
        return {}
    saved = settings.from_config(read_json(record, settings=dict)["settings"])
    wanted = settings.replace(saved, of.changes) if of.is_fitted else of.settings
    if settings.as_resumed(saved, wanted) != wanted:
        return {}
    for file in sorted(of.folder.glob("evaluations/*/record.json")):
        found = read_json(file, key=dict, metrics=dict)
        done = (found["key"]["step"], found["key"]["num_samples"])
        if done == (wanted.train.num_steps, wanted.evaluate.num_samples):
            return {name: metric["value"] for name, metric in found["metrics"].items()}
    return {}


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = format_value(statistics.fmean(values))
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def main(argv: Sequence[str]) -> None:
    """Runs a sweep, and prints the table and the path of the files."""
    parser = argparse.ArgumentParser(
        "python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sweep", type=Path, required=True, metavar="FILE.py", help="what to run")
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="for all runs")
    flags = parser.parse_args(argv)
    flags.workdir = flags.workdir.expanduser()  # Shells do not expand it after `--workdir=`.
    sweep = read(flags.sweep.expanduser())
    planned = plan(sweep, flags.workdir)
    flags.workdir.mkdir(parents=True, exist_ok=True)
    with locked(flags.workdir / "lock", f"--workdir={flags.workdir}", "choose another --workdir"):
        outcomes = [run_one(sweep["config"], of) for of in planned]
    found = dict.fromkeys(name for outcome in outcomes for name in outcome.metrics)
    differing = [name for name in found if len({o.metrics.get(name) for o in outcomes}) > 1]
    text = markdown(planned, outcomes, sweep.get("metrics", differing))
    write_text(flags.workdir / "table.md", text)
    write_text(flags.workdir / "table.csv", table(planned, outcomes))
    print(f"{text}\ntable: {flags.workdir / 'table.md'}")
    if failed := sum(bool(outcome.remark) for outcome in outcomes):
        raise UserError(f"{failed} of {len(outcomes)} runs failed")


if __name__ == "__main__":
    program.set_up_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ending_in_one_line():
        main(sys.argv[1:])

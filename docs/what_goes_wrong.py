"""Runs common failures on a swiss roll and draws the samples of each run with its metrics.

Command: python -m docs.what_goes_wrong --workdir=runs/wrong
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.evaluation.metrics import format_value
from experiments.files import read_arrays
from experiments.pictures.points import frame
from experiments.pictures.style import PRIOR, SAMPLES, panels, save
from experiments.sweep import plan, runner
from experiments.sweep.plan import Run
from experiments.sweep.runner import Outcome
from experiments.training import metrics_log

SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "what_goes_wrong.py"
# Neither metric agrees with the eye in all panels: the energy ratio hardly sees a few samples far
# from the roll, and the KL divergence hardly sees too many samples in one part of it.
METRICS = {"energy_ratio": "energy ratio {:.1f}", "kl_to_data": "KL {:.2f}"}
LOGGED = ("drift_norm", "ratio_real", "ratio_flowed")
COLUMNS = 3


def main() -> None:
    """Runs or resumes the sweep, draws the picture and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs")
    root = parser.parse_args().workdir
    root.mkdir(parents=True, exist_ok=True)
    todo = plan.from_file(SWEEP)
    outcomes = runner.run_all(todo, root)
    columns = ["", "end", *METRICS, *LOGGED]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run, outcome in zip(todo.runs, outcomes, strict=True):
        print(f"| {run.name} | {' | '.join(_row(root / run.folder, outcome))} |")
    print(save(_draw(root, todo.runs, outcomes), root / "picture.png"))


def _row(folder: Path, outcome: Outcome) -> list[str]:
    last = metrics_log.read(folder / "metrics.jsonl")[-1]
    values = [*map(outcome.metrics.get, METRICS), *(last[name] for name in LOGGED)]
    return [outcome.status, *("-" if v is None else format_value(v) for v in values)]


def _draw(root: Path, runs: list[Run], outcomes: list[Outcome]) -> Figure:
    """Draws the last snapshot of each run over that of the healthy one, in grey."""
    figure, axes = panels(COLUMNS, -(-len(runs) // COLUMNS), size=2.1)
    good = _last_snapshot(root / runs[0].folder)
    low, high = frame(good)
    for ax, run, outcome in zip(axes, runs, outcomes, strict=True):
        samples = _last_snapshot(root / run.folder)
        ax.scatter(*good.T, s=1.0, color=PRIOR, alpha=0.25, linewidths=0)
        ax.scatter(*samples.T, s=1.2, color=SAMPLES, alpha=0.6, linewidths=0)
        found = [
            text.format(outcome.metrics[m]) for m, text in METRICS.items() if m in outcome.metrics
        ]
        value = ", ".join(found) or outcome.status
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_axis_off()
        ax.set_title(f"{run.name}\n{value}")
    return figure


def _last_snapshot(folder: Path) -> np.ndarray:
    path = max((folder / "snapshots").glob("*.npz"))
    return read_arrays(path, ["arr_0"])["arr_0"]


if __name__ == "__main__":
    main()

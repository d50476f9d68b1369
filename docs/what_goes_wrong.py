"""Runs common failures on a swiss roll and draws the samples of each run with its metrics.

Command: python -m docs.what_goes_wrong --workdir=runs/wrong
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments import log, sweep
from experiments.evaluation.metrics import format_value
from experiments.pictures.points import frame
from experiments.pictures.style import PRIOR, SAMPLES, panels, save
from experiments.sweep import Outcome, Planned

SWEEP = Path(__file__).parents[1] / "configs" / "sweeps" / "what_goes_wrong.py"
# Neither metric agrees with the eye in all panels: the energy ratio hardly responds to a few
# samples far from the roll, and the KL divergence to too many samples in one part of it.
METRICS = {"energy_ratio": "energy ratio {:.1f}", "kl_to_data": "KL {:.2f}"}
LOGGED = ("drift_norm", "ratio_real", "ratio_flowed")
COLUMNS = 3


def main() -> None:
    """Runs or resumes the sweep, draws the picture and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs")
    root = parser.parse_args().workdir
    root.mkdir(parents=True, exist_ok=True)
    wanted = sweep.read(SWEEP)
    planned = sweep.plan(wanted, root)
    outcomes = [sweep.run_one(wanted["config"], of) for of in planned]
    columns = ["", "end", *METRICS, *LOGGED]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for of, outcome in zip(planned, outcomes, strict=True):
        print(f"| {of.name} | {' | '.join(_row(of.folder, outcome))} |")
    print(save(_draw(planned, outcomes), root / "picture.png"))


def _row(folder: Path, outcome: Outcome) -> list[str]:
    last = log.read(folder / "metrics.jsonl")[-1]
    values = [*map(outcome.metrics.get, METRICS), *(last[name] for name in LOGGED)]
    return [outcome.remark or "done", *("-" if v is None else format_value(v) for v in values)]


def _draw(planned: list[Planned], outcomes: list[Outcome]) -> Figure:
    """Draws the last snapshot of each run over that of the healthy one, in grey."""
    figure, axes = panels(COLUMNS, -(-len(planned) // COLUMNS), size=2.1)
    good = _last_snapshot(planned[0].folder)
    low, high = frame(good)
    for ax, of, outcome in zip(axes, planned, outcomes, strict=True):
        samples = _last_snapshot(of.folder)
        ax.scatter(*good.T, s=1.0, color=PRIOR, alpha=0.25, linewidths=0)
        ax.scatter(*samples.T, s=1.2, color=SAMPLES, alpha=0.6, linewidths=0)
        found = [
            text.format(outcome.metrics[m]) for m, text in METRICS.items() if m in outcome.metrics
        ]
        value = ", ".join(found) or "diverged"
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_axis_off()
        ax.set_title(f"{of.name}\n{value}")
    return figure


def _last_snapshot(folder: Path) -> np.ndarray:
    path = max((folder / "snapshots").glob("*.npz"))
    samples: np.ndarray = np.load(path, allow_pickle=False)["arr_0"]
    return samples


if __name__ == "__main__":
    main()

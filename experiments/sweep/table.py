"""The tables of a sweep: all runs as CSV for programs, and means over seeds as Markdown."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.evaluation.metrics import format_value
from experiments.files import write_text
from experiments.settings import Settings
from experiments.sweep.plan import Plan
from experiments.sweep.runner import DONE, Outcome


class Row(NamedTuple):
    """The runs of one name in a group, one per seed."""

    group: str
    name: str
    varied: Settings
    values: dict[str, list[float]]  # Of each metric, from the seeds that finished.
    num_runs: int
    remarks: str  # How the other seeds ended.


def metrics_to_show(plan: Plan, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Returns the metrics of the plan or, if it has none, those that differ between its runs."""
    found = [o.metrics for o in outcomes if o.status == DONE]
    if plan.metrics or not found:
        return plan.metrics
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return tuple(name for name in names if len({m.get(name) for m in found}) > 1)


def rows(plan: Plan, outcomes: Sequence[Outcome], metrics: Sequence[str]) -> list[Row]:
    """Collects the seeds of each name."""
    pairs = list(zip(plan.runs, outcomes, strict=True))
    result = []
    for group, name in dict.fromkeys((run.group, run.name) for run in plan.runs):
        own = [(run, outcome) for run, outcome in pairs if (run.group, run.name) == (group, name)]
        done = [outcome.metrics for _, outcome in own if outcome.status == DONE]
        values = {metric: [m[metric] for m in done if metric in m] for metric in metrics}
        remarks = [
            f"seed {run.seed} {outcome.status}: {outcome.reason}"
            for run, outcome in own
            if outcome.status != DONE
        ]
        varied = own[0][0].varied
        result.append(Row(group, name, varied, values, len(own), "; ".join(remarks)))
    return result


def write_csv(path: Path, plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """Writes one line per run with all its settings and metrics."""
    lines = [
        {
            "group": run.group,
            "name": run.name,
            "folder": run.folder,
            "status": outcome.status,
            "reason": outcome.reason,
            "seconds": round(outcome.seconds, 1),
            **{f"config.{key}": value for key, value in run.settings.items()},
            **outcome.metrics,
        }
        for run, outcome in zip(plan.runs, outcomes, strict=True)
    ]
    columns = dict.fromkeys(key for line in lines for key in line)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def markdown(table: Sequence[Row], metrics: Sequence[str]) -> str:
    """Returns one table per group, with means and standard deviations over seeds."""
    remarks = any(row.remarks for row in table)
    parts = []
    for group in dict.fromkeys(row.group for row in table):
        header = [group, "runs", *metrics, *(["remarks"] if remarks else [])]
        lines = [
            [row.name, str(row.num_runs), *(_summary(row.values[m]) for m in metrics)]
            + ([row.remarks.replace("|", "\\|")] if remarks else [])
            for row in table
            if row.group == group
        ]
        cells = (header, ["---"] * len(header), *lines)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(parts) + "\n"


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = format_value(statistics.fmean(values))
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean

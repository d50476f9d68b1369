"""The table of the race."""

import json
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
RUN = ("task", "contestant", "budget", "seed", "machine", "settings", "judge_accuracy")
_HEAD = (
    "method", "passes, ms per sample", "top probability", "classes", "distance, classifier",
    "distance, public",
)  # fmt: skip


def read(file: Path, task: str) -> list[Row]:
    """Reads the figures of a task, one JSON object per line; a missing file has none."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if row["task"] == task]


def table(rows: list[Row]) -> str:
    """Returns a table in Markdown for each machine and budget: means over seeds, which it lists."""
    parts = []
    for budget, machine in dict.fromkeys((row["budget"], row["machine"]) for row in rows):
        those = [row for row in rows if (row["budget"], row["machine"]) == (budget, machine)]
        lines = [f"{budget:,.0f} CPU seconds; {machine}\n", f"| {' | '.join(_HEAD)} |"]
        lines.append("|" + "---|" * len(_HEAD))
        lines.append(_line("real images", "", [{**row, "value": row["real"]} for row in those]))
        for name in dict.fromkeys(_name(row) for row in those):
            chosen = [row for row in those if _name(row) == name]
            cost = f"{chosen[0]['passes']}, {np.mean([r['milliseconds'] for r in chosen]):.1f}"
            lines.append(_line(name, cost, chosen))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "no results yet; run with --data"


def _name(row: Row) -> str:
    changed = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
    return row["method"] + (f" ({changed})" if changed else "")


def _line(name: str, cost: str, rows: list[Row]) -> str:
    def values(metric: str) -> list[float]:
        return [row["value"] for row in rows if row["metric"] == metric]

    def distance(metric: str) -> str:
        found = values(metric)
        seeds = f" ({', '.join(f'{v:.3g}' for v in found)})" if 1 < len(set(found)) <= 4 else ""
        return f"{np.mean(found):.3g}{seeds}" if found else ""

    cells = (
        name,
        cost,
        f"{np.mean(values('top_probability')):.3f}",
        f"{np.mean(values('min_share')):.1%} to {np.mean(values('max_share')):.1%}",
        distance("frechet_classifier"),
        distance("frechet_public"),
    )
    return f"| {' | '.join(cells)} |"

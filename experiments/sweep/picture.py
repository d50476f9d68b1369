"""The picture of a sweep: one row per metric and one panel per group."""

import statistics
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures.style import DATA, PRIOR, SAMPLES
from experiments.sweep.table import Row


def comparison(rows: Sequence[Row], metrics: Sequence[str]) -> Figure:
    """Draws each run as a dot, and the mean over seeds as a bar or, over a number, as a line."""
    groups = list(dict.fromkeys(row.group for row in rows))
    figure, axes = plt.subplots(
        len(metrics),
        len(groups),
        figsize=(3.6 * len(groups), 2.4 * len(metrics)),
        squeeze=False,
        layout="constrained",
        sharey="row",
    )
    for i, metric in enumerate(metrics):
        for j, group in enumerate(groups):
            _panel(axes[i, j], [row for row in rows if row.group == group], metric)
            axes[i, j].set_title(group if i == 0 else "")
            if any(min(row.values[metric], default=0.0) < 0 for row in rows):
                axes[i, j].axhline(0.0, color=PRIOR, linewidth=0.8)
        axes[i, 0].set_ylabel(metric.replace("_", " "))
    return figure


def _panel(ax: Axes, rows: Sequence[Row], metric: str) -> None:
    shown = [row for row in rows if row.values[metric]]
    means = [statistics.fmean(row.values[metric]) for row in shown]
    key = _number_varied(rows)
    if key is not None:
        places = [row.varied[key] for row in shown]
        ax.plot(places, means, color=SAMPLES)
        ax.set(xlabel=key, xticks=[row.varied[key] for row in rows])
    else:
        places = [rows.index(row) for row in shown]
        ax.bar(places, means, width=0.6, color=SAMPLES, alpha=0.45)
        # A name without a bar has no finished run.
        names = [row.name.replace(", ", ",\n") for row in rows]
        ax.set_xticks(range(len(rows)), names)
    for place, row in zip(places, shown, strict=True):
        values = row.values[metric]
        ax.plot([place] * len(values), values, "o", markersize=3.5, color=DATA, zorder=3)


def _number_varied(rows: Sequence[Row]) -> str | None:
    """Returns the key of the config that varies, if it is the only one and has numbers."""
    varied = {key: [row.varied.get(key) for row in rows] for own in rows for key in own.varied}
    differing = [key for key, values in varied.items() if len(set(map(str, values))) > 1]
    if len(differing) != 1:
        return None
    numbers = all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in varied[differing[0]]
    )
    return differing[0] if numbers else None

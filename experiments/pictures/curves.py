"""Curves of metrics: over training, and over the length of the flow."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.evaluation.metrics import Metric
from experiments.log import PREFIX
from experiments.pictures.style import DATA, PRIOR, SAMPLES, legend_below, panels

_LABEL_WIDTH = 32  # Characters per line of a vertical label.


def training(
    records: list[dict[str, Any]], chance: float, best: Mapping[str, Any] | None = None
) -> Figure:
    """Draws the metrics log: loss, mean ratios, norms, and the metric of samples if it has one.

    `chance` is the loss of an estimator that cannot distinguish samples from data.
    """
    steps = np.array([r["step"] for r in records])

    def values(name: str) -> np.ndarray:
        return np.array([r.get(name) for r in records], float)  # NaN for `None`.

    judged = sorted({name for r in records for name in r if name.startswith(PREFIX)})
    figure, (loss, ratio, norms, *rest) = panels(4 if judged else 3, size=2.6)
    loss.plot(steps, values("loss"), color=SAMPLES, label="loss")
    loss.axhline(chance, color=PRIOR, linewidth=0.8, linestyle=":", label=f"chance: {chance:.5g}")
    loss.set_title("Bregman loss")
    legend_below(loss)
    ratio.plot(steps, values("ratio_real"), color=DATA, label="on data")
    ratio.plot(steps, values("ratio_flowed"), color=SAMPLES, label="on flowed samples")
    ratio.axhline(1.0, color=PRIOR, linewidth=0.8, linestyle=":")
    ratio.set_title(r"mean ratio $r = \tilde{q}/p$")
    legend_below(ratio)
    norms.semilogy(steps, values("grad_norm"), color=DATA, label="gradient of the loss")
    norms.semilogy(steps, values("drift_norm"), color=SAMPLES, label="last drift of the flow")
    norms.set_title("norms")
    _few_log_ticks(norms)
    legend_below(norms)
    for ax in rest:
        for name in judged:
            found = values(name)
            taken = ~np.isnan(found)
            label = name.removeprefix(PREFIX)
            ax.plot(steps[taken], found[taken], ".-", color=SAMPLES, label=label)
        if best is not None:
            ax.axvline(best["step"], color=PRIOR, linestyle=":", label="best checkpoint")
        ax.set_title("metric of samples")
        legend_below(ax)
    for ax in (loss, ratio, norms, *rest):
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(3))  # Long step numbers need space.
        ax.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def metric(
    points: Sequence[tuple[int, Metric]],
    title: str,
    axis: str,
    marks: Mapping[str, int],
    balanced: int | None = None,
) -> Figure:
    """Draws a metric of samples against a number, such as the step, and marks the best (fig. 8).

    The points are in order; `marks` are up to two positions on the horizontal axis, by name,
    and `balanced` is the length at which samples and data have the same mean output.
    """
    at, values = [p for p, _ in points], [m.value for _, m in points]
    figure, ax = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    ax.plot(at, values, ".-", color=SAMPLES)
    if min(values) > 0.0:  # Unbiased estimates of small distances may be negative.
        ax.set_yscale("log")
        _few_log_ticks(ax)
    # On the outer sides of the two lines, which may be close to each other.
    for (name, where), side in zip(marks.items(), ("right", "left"), strict=False):
        ax.axvline(where, color=PRIOR, linewidth=0.8, linestyle=":")
        ax.annotate(name, (where, 1.0), xycoords=("data", "axes fraction"), ha=side)
    if balanced is not None:
        label = f"equal mean output on samples and data: {balanced:,}"
        ax.axvline(balanced, color=DATA, linewidth=0.8, linestyle="--", label=label)
    best, best_metric = best_of(points)
    label = f"best: {best_metric.value:.3g} at {best:,}"
    ax.plot([best], [best_metric.value], "*", color=DATA, markersize=12, label=label)
    ax.set_title(title, pad=16)  # Leaves space for the names of the marks.
    ax.set(xlabel=axis, ylabel=textwrap.fill(best_metric.defined.words, _LABEL_WIDTH))
    legend_below(ax)
    return figure


def _few_log_ticks(ax: Axes) -> None:
    """Labels a logarithmic axis at 1, 2 and 5 times powers of ten, as plain numbers."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def best_of(points: Sequence[tuple[int, Metric]]) -> tuple[int, Metric]:
    """Returns the point with the lowest value; the first one if several are equal."""
    finite = [point for point in points if math.isfinite(point[1].value)]
    return min(finite or points, key=lambda point: point[1].value)

"""Figures of a run, one per function, for points or images. `report` puts them on one page."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.data.source import Source
from experiments.evaluation.metrics import Metric
from experiments.log import PREFIX
from experiments.pictures import images, points, style
from experiments.pictures.style import DATA, PRIOR, SAMPLES, save, styled

__all__ = [
    "animate_flow", "course", "num_shown", "over_length", "samples_and_data", "save", "strips",
    "training",
]  # fmt: skip
_NUM_FRAMES = 16
_NUM_SMALL = 36  # Images of a panel among several.


@styled
def samples_and_data(
    source: Source,
    prior: np.ndarray,
    samples: np.ndarray,
    domains: tuple[str, str] = ("", ""),
    caption: str = "",
) -> Figure:
    """Draws the prior, the samples that flowed from it, and held-out data side by side.

    For a translation, `prior[i]` is the source image of `samples[i]`, `domains` are the names of
    source and target, and the caption is that of `evaluation.translation.caption`.
    """
    titles = ["prior $x_0$", r"samples $x_{K+\kappa}$", "data"]
    if source.starts is not None:
        start, target = (name and f": {style.plain(name)}" for name in domains)
        titles = [f"source{start}", r"translated $x_{K+\kappa}$", f"target{target}"]
    figure, axes = style.panels(titles, 3, size=2.3)
    data = source.held_out(num_shown(source), 1)
    paint = _painter(source, over_data=False)
    for ax, rows, colour in zip(axes, (prior, samples, data), (PRIOR, SAMPLES, DATA), strict=True):
        paint(ax, rows, colour)
    if caption:
        figure.supxlabel(textwrap.fill(caption, 60), fontsize="medium")
    return figure


@styled
def course(source: Source, snapshots: Sequence[tuple[int, np.ndarray]]) -> Figure:
    """Draws the same samples at several steps of training (fig. 4), more of them early on."""
    steps = [step for step, _ in snapshots]
    picked = [(f"step {steps[i]:,}", snapshots[i][1]) for i in spread_by_ratio(steps, 6)]
    return _small(source, dict(picked))


@styled
def strips(source: Source, path: np.ndarray, num_steps: int, start: str) -> Figure:
    """Draws samples along the flow: a row per image, or a panel per step for points (fig. 6).

    The path is `x_0 ... x_{K+κ}` of B samples, [K + κ + 1, B, ...]. K is `num_steps`, and `start`
    says where the flow starts.
    """
    if source.kind == "points":
        return _small(source, {f"$x_{{{k}}}$": path[k] for k in _spread(len(path), 6)})
    picked = _spread(len(path), 12)
    title = f"steps of the flow from {start} (K = {num_steps})"
    return images.strips(path[picked], picked, title)


@styled
def animate_flow(source: Source, path: np.ndarray, file: Path) -> None:
    """Writes an animation of samples that flow along a path, [K + κ + 1, B, ...], as WebP."""
    figure, (ax,) = style.panels([""], size=2.6)
    paint = _painter(source)

    def show(step: int) -> None:
        ax.clear()
        paint(ax, path[step])
        ax.set_title(f"$x_{{{step}}}$")

    style.save_animation(figure, show, _spread(len(path), _NUM_FRAMES), file)


def _small(source: Source, sets: Mapping[str, np.ndarray]) -> Figure:
    """Draws a small panel for each title, three in a row."""
    figure, axes = style.panels(list(sets), 3, size=1.8)
    paint = _painter(source)
    for ax, rows in zip(axes, sets.values(), strict=True):
        paint(ax, rows)
    return figure


def _painter(source: Source, *, over_data: bool = True) -> Callable[..., None]:
    """Returns the function of a panel and of examples that draws these, over the data if points."""
    if source.kind == "images":
        return lambda ax, rows, colour=None: images.show(ax, images.square(rows[:_NUM_SMALL]))
    data = source.held_out(points.NUM_SHOWN, 1)

    def paint(ax: Axes, rows: np.ndarray, colour: str = SAMPLES) -> None:
        if over_data:
            points.scatter(ax, data, PRIOR, points.frame(data), alpha=0.15)
        points.scatter(ax, rows, colour, points.frame(data))

    return paint


@styled
def training(
    records: list[dict[str, Any]], chance: float, best: Mapping[str, Any] | None = None
) -> Figure:
    """Draws the metrics log: loss, mean ratios, norms, and the metric of samples if it has one.

    `chance` is the loss of an estimator that cannot distinguish samples from data.
    """
    judged = sorted({name for r in records for name in r if name.startswith(PREFIX)})
    curves: dict[str, dict[str, tuple[str, str]]] = {
        "Bregman loss": {"loss": ("loss", SAMPLES)},
        r"mean ratio $r = \tilde{q}/p$": {
            "ratio_real": ("on data", DATA),
            "ratio_flowed": ("on flowed samples", SAMPLES),
        },
        "norms": {
            "grad_norm": ("gradient of the loss", DATA),
            "drift_norm": ("last drift of the flow", SAMPLES),
        },
        "metric of samples": {name: (name.removeprefix(PREFIX), SAMPLES) for name in judged},
    }
    figure, axes = style.panels(list(curves), 2, size=2.9)
    for ax, of_panel in zip(axes, curves.values(), strict=True):
        for name, (label, colour) in of_panel.items():
            found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            ax.plot(*zip(*found, strict=True), color=colour, label=label)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(3))  # Long step numbers need space.
        ax.xaxis.set_major_formatter("{x:,.0f}")
    loss, ratio, norms, metric = axes
    loss.axhline(chance, color=PRIOR, linestyle=":", label=f"chance: {chance:.5g}")
    ratio.axhline(1.0, color=PRIOR, linestyle=":")
    norms.set_yscale("log")
    if not judged:
        metric.remove()
    elif best is not None:
        metric.axvline(best["step"], color=PRIOR, linestyle=":", label="best checkpoint")
    for ax in figure.axes:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3))  # Where it covers no curve.
    return figure


@styled
def over_length(
    points: Sequence[tuple[int, Metric]], title: str, marks: Mapping[str, int]
) -> tuple[Figure, tuple[int, Metric]]:
    """Draws a metric of samples against the length of the flow (fig. 8), and returns the best.

    The points are in order; `marks` are two lengths by name.
    """
    lengths, values = [length for length, _ in points], [m.value for _, m in points]
    finite = [point for point in points if math.isfinite(point[1].value)]
    best = min(finite or points, key=lambda point: point[1].value)
    figure, (ax,) = style.panels([""], size=4.5)
    ax.plot(lengths, values, ".-", color=SAMPLES)
    if min(values) > 0.0:  # Unbiased estimates of small distances may be negative.
        ax.set_yscale("log")
    # On the outer sides of the two lines, which may be close to each other.
    for (name, where), side in zip(marks.items(), ("right", "left"), strict=True):
        ax.axvline(where, color=PRIOR, linestyle=":")
        ax.annotate(name, (where, 1.0), xycoords=("data", "axes fraction"), ha=side)
    label = f"best: {best[1].value:.3g} at {best[0]:,}"
    ax.plot([best[0]], [best[1].value], "*", color=DATA, markersize=12, label=label)
    ax.set_title(style.plain(title), pad=18)  # Leaves space for the names of the marks.
    ax.set(xlabel="length of the flow, steps", ylabel=textwrap.fill(best[1].defined.words, 32))
    ax.legend()
    return figure, best


def spread_by_ratio(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` indices of increasing steps, including first and last.

    The ratios of the steps that they pick, except for 0, are about equal.
    """
    later = [step for step in steps if step > 0]
    zero = [i for i, step in enumerate(steps) if step == 0]
    if not later:
        return zero
    wanted = np.geomspace(later[0], later[-1], most - len(zero))
    nearest = {int(np.argmin(np.abs(np.log(later) - np.log(at)))) for at in wanted}
    return zero + [len(zero) + i for i in sorted(nearest)]


def _spread(count: int, most: int) -> list[int]:
    """Returns at most `most` indices spread evenly over `count`, including first and last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def num_shown(source: Source) -> int:
    """Returns the largest number of samples in a picture."""
    return points.NUM_SHOWN if source.kind == "points" else images.NUM_SHOWN

"""Figures of a run, one per function, for points in the plane or images."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from experiments.data.source import Source
from experiments.evaluation.metrics import Metric
from experiments.files import replacing
from experiments.log import PREFIX
from experiments.pictures import images, style
from experiments.pictures.style import DATA, PRIOR, SAMPLES, styled

NUM_POINTS = 4_000  # More points would cover each other.
_NUM_SMALL = 36  # Images of a panel among several.


@styled
def samples_and_data(
    source: Source,
    prior: np.ndarray,
    samples: np.ndarray,
    domains: tuple[str, str] = ("", ""),
) -> Figure:
    """Draws the prior (or source), samples that flowed from it, and held-out data side by side."""
    titles = ["prior $x_0$", r"samples $x_{K+\kappa}$", "data"]
    if source.starts is not None:
        start, target = (name and f": {style.plain(name)}" for name in domains)
        titles = [f"source{start}", r"translated $x_{K+\kappa}$", f"target{target}"]
    figure, axes = style.panels(titles, 3, size=2.3)
    data = source.held_out(num_shown(source), 1)
    paint = _painter(source, over_data=False)
    for ax, rows, colour in zip(axes, (prior, samples, data), (PRIOR, SAMPLES, DATA), strict=True):
        paint(ax, rows, colour)
    return figure


@styled
def course(source: Source, snapshots: Sequence[tuple[int, np.ndarray]]) -> Figure:
    """Draws the same samples at several steps of training (fig. 4), more of them early on."""
    steps = [step for step, _ in snapshots]
    picked = {f"step {steps[i]:,}": snapshots[i][1] for i in spread_by_ratio(steps, 6)}
    return _small(source, picked)


@styled
def strips(source: Source, path: np.ndarray, num_steps: int, start: str) -> Figure:
    """Draws samples along the flow: a row per image, or a panel per step for points (fig. 6).

    The path is `x_0 ... x_{K+κ}` of B samples, [K + κ + 1, B, ...]; `start` names where it starts.
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
    canvas, paint, frames = FigureCanvasAgg(figure), _painter(source), []
    for step in _spread(len(path), 16):
        ax.clear()
        paint(ax, path[step])
        ax.set_title(f"$x_{{{step}}}$")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    options = {"save_all": True, "append_images": frames[1:], "loop": 0, "quality": 50}
    milliseconds = [180] * (len(frames) - 1) + [2_000]
    with replacing(file) as opened:
        frames[0].save(opened, format="webp", duration=milliseconds, **options)


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
    data = source.held_out(NUM_POINTS, 1)
    limits = _frame(data)

    def paint(ax: Axes, rows: np.ndarray, colour: str = SAMPLES) -> None:
        if over_data:
            ax.scatter(data[:, 0], data[:, 1], s=1.2, color=PRIOR, alpha=0.15, linewidths=0)
        x, y = rows[:NUM_POINTS].T
        ax.scatter(x, y, s=1.2, color=colour, alpha=0.5, linewidths=0)
        ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")

    return paint


def _frame(data: np.ndarray) -> tuple[float, float]:
    """Returns a range for both axes that contains the data and a margin."""
    reach = float(np.quantile(np.abs(data), 0.999)) * 1.25
    return -reach, reach


@styled
def log_ratio_and_drift(
    log_ratio_fn: Callable[[np.ndarray], np.ndarray],
    drift_fn: Callable[[np.ndarray], np.ndarray],
    data: np.ndarray,
) -> Figure:
    """Draws the estimated `log r` as a heat map with the drift as arrows, over the data."""
    limits = _frame(data)
    axes = (np.linspace(*limits, num, dtype=np.float32) for num in (160, 24))
    fine, coarse = (np.stack(np.meshgrid(x, x), -1).reshape(-1, 2) for x in axes)
    values = log_ratio_fn(fine).reshape(160, 160)
    most = max(float(np.quantile(np.abs(values), 0.95)), 1e-6)
    figure, (ax,) = style.panels(["estimated log-ratio and drift"], size=3.6)
    place: dict[str, Any] = {"extent": (*limits, *limits), "origin": "lower"}
    image = ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, **place)
    figure.colorbar(image, ax=ax, label=r"$\log r = \log\,\tilde{q}/p$", shrink=0.8, extend="both")
    ax.scatter(data[:, 0], data[:, 1], s=0.4, color="black", alpha=0.35, linewidths=0)
    arrows = drift_fn(coarse)
    # The square root of the length, because the drift is many times larger far from the data.
    shown = arrows / np.maximum(np.sqrt(np.linalg.norm(arrows, axis=-1, keepdims=True)), 1e-9)
    ax.quiver(*coarse.T, *shown.T, color="black", width=0.0025, alpha=0.8)
    ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[])
    return figure


@styled
def training(
    records: list[dict[str, Any]], chance: float, best: Mapping[str, Any] | None = None
) -> Figure:
    """Draws the metrics log, with the loss of an estimator that only guesses, `chance`."""
    judged = sorted({name for r in records for name in r if name.startswith(PREFIX)})
    curves = {
        "Bregman loss": {"loss": "loss"},
        r"mean ratio $r = \tilde{q}/p$": {"ratio_flowed": "on samples", "ratio_real": "on data"},
        "norms": {"drift_norm": "last drift of the flow", "grad_norm": "gradient of the loss"},
        "metric of samples": {name: name.removeprefix(PREFIX) for name in judged},
    }
    figure, axes = style.panels(list(curves), 2, size=2.9)
    for ax, of_panel in zip(axes, curves.values(), strict=True):
        for (name, label), colour in zip(of_panel.items(), (SAMPLES, DATA), strict=False):
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
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3))  # There it covers no curve.
    return figure


@styled
def over_length(
    points: Sequence[tuple[int, Metric]], title: str, marks: Mapping[str, int]
) -> tuple[Figure, tuple[int, Metric]]:
    """Draws a metric against the length of the flow (fig. 8) with two marks; returns the best."""
    lengths, values = [length for length, _ in points], [m.value for _, m in points]
    best = points[int(np.argmin(np.nan_to_num(values, nan=np.inf)))]
    figure, (ax,) = style.panels([""], size=4.5)
    ax.plot(lengths, values, ".-", color=SAMPLES)
    if min(values) > 0.0:  # Unbiased estimates of small distances may be negative.
        ax.set_yscale("log")
    # The labels stand on the outer sides of the two lines, which may be close together.
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
    """Returns at most `most` indices of increasing steps whose ratios are about equal."""
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
    return NUM_POINTS if source.kind == "points" else images.NUM_SHOWN

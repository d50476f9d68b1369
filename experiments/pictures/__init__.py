"""Figures of a run, one per function. This module selects them by the kind of data.

`report` puts them together on one page.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure

from experiments.data.source import Source
from experiments.pictures import flow, images, points, style
from experiments.pictures.style import save

__all__ = ["animate_flow", "course", "num_shown", "samples_and_data", "save", "strips"]
_NUM_FRAMES = 16


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
    titles = [style.PRIOR_TITLE, style.SAMPLES_TITLE, style.DATA_TITLE]
    if source.is_translation:
        start, target = (name and f": {style.plain(name)}" for name in domains)
        titles = [f"source{start}", r"translated $x_{K+\kappa}$", f"target{target}"]
    columns = (prior, samples, source.held_out(num_shown(source), 1))
    # The run of a shipped sampler has no data.
    shown = {title: rows for title, rows in zip(titles, columns, strict=True) if len(rows)}
    figure = _of_kind(source).side_by_side(shown)
    if caption:
        figure.supxlabel(caption, fontsize="medium")
    return figure


def course(source: Source, snapshots: Sequence[tuple[int, np.ndarray]]) -> Figure:
    """Draws the same samples at several steps of training (fig. 4), more of them early on."""
    steps = [step for step, _ in snapshots]
    picked = [(f"step {steps[i]:,}", snapshots[i][1]) for i in spread_by_ratio(steps, 6)]
    if source.kind == "points":
        return points.over_data(picked, _points_of(source))
    return images.grids(picked)


def strips(source: Source, path: np.ndarray, num_steps: int, start: str) -> Figure:
    """Draws samples along the flow: a row per image, or a panel per step for points (fig. 6).

    The path is `x_0 ... x_{K+κ}` of B samples, [K + κ + 1, B, ...]. K is `num_steps`, and `start`
    says where the flow starts.
    """
    if source.kind == "images":
        return flow.strips(path[:, : flow.NUM_ROWS], num_steps, start)
    picked = [(f"$x_{{{k}}}$", path[k]) for k in points.spread(len(path), 6)]
    return points.over_data(picked, _points_of(source))


def animate_flow(source: Source, path: np.ndarray, file: Path) -> None:
    """Writes an animation of samples that flow along a path, [K + κ + 1, B, ...], as WebP."""
    steps = points.spread(len(path), _NUM_FRAMES)
    if source.kind == "points":
        figure, update = points.moving(path, _points_of(source))
    else:
        figure, update = images.moving(path[:, : images.NUM_SMALL])
    style.save_animation(figure, update, steps, file)


def spread_by_ratio(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` indices of increasing steps, including first and last.

    The ratios of the steps that they pick, except for 0, are about equal.
    """
    later = [step for step in steps if step > 0]
    zero = [i for i, step in enumerate(steps) if step == 0]
    if not later:
        return zero
    wanted = np.geomspace(later[0], later[-1], most - len(zero))
    logs = np.log(later)
    nearest = {int(np.argmin(np.abs(logs - np.log(at)))) for at in wanted}
    return zero + [len(zero) + i for i in sorted(nearest)]


def _points_of(source: Source) -> np.ndarray:
    return source.held_out(points.NUM_SHOWN, 1)


def num_shown(source: Source) -> int:
    """Returns the largest number of samples in a picture."""
    return _of_kind(source).NUM_SHOWN


def _of_kind(source: Source) -> ModuleType:
    return points if source.kind == "points" else images

"""Figures of a run, one per function. This module selects them by the kind of data.

`report` puts them together on one page.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure

from experiments.data.source import Source
from experiments.pictures import images, points, style
from experiments.pictures.style import panels, save

__all__ = ["course", "num_shown", "samples_and_data", "save"]


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
    """Draws the same samples at several steps of training, points over the data (fig. 4)."""
    picked = [snapshots[i] for i in points.spread(len(snapshots), 6)]
    figure, axes = panels(len(picked), size=1.4)
    data = source.held_out(points.NUM_SHOWN, 1) if source.kind == "points" else None
    for ax, (step, samples) in zip(axes, picked, strict=True):
        if data is None:
            images.show(ax, images.tile(samples[:36], 6))
        else:
            points.scatter(ax, data, style.PRIOR, points.frame(data), alpha=0.15)
            points.scatter(ax, samples, style.SAMPLES, points.frame(data))
        ax.set_title(f"step {step:,}")
    return figure


def num_shown(source: Source) -> int:
    """Returns the largest number of samples in a picture."""
    return _of_kind(source).NUM_SHOWN


def _of_kind(source: Source) -> ModuleType:
    return points if source.kind == "points" else images

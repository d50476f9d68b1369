"""The style of all pictures: colours, sizes and file format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.files import replacing

DATA, SAMPLES, PRIOR = "#4878a8", "#d1602b", "#8a8a8a"
_STYLE: Any = {
    # Pictures are at most 7 inches wide, so their labels are legible on a phone as well.
    "figure.dpi": 140,
    "savefig.bbox": "tight",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Numbers are written out: an offset or a power of ten would lie over the title.
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-6, 9),
    "legend.frameon": False,
}
# Decorates a function that draws, so that nothing else in the process has this style.
styled = matplotlib.rc_context(_STYLE)


def panels(
    titles: Sequence[str], columns: int = 1, size: float = 2.4, height: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a panel for each title, `size` inches wide and high, row by row."""
    rows = -(-len(titles) // columns)
    figure = Figure((size * columns, (height or size) * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    return figure, axes[: len(titles)]


def plain(name: str) -> str:
    """Shortens a name that a user chose, and escapes it so that it is not typeset as maths."""
    short = name if len(name) <= 24 else f"{name[:23]}…"
    return short.replace("$", r"\$")


@styled
def save(figure: Figure, path: Path) -> Path:
    """Writes a figure atomically."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    return path

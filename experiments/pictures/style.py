"""The style of all pictures: colours, sizes and file format."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Needs no screen.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.files import replacing

DATA, SAMPLES, PRIOR = "#4878a8", "#d1602b", "#8a8a8a"
DATA_TITLE, SAMPLES_TITLE, PRIOR_TITLE = "data", r"samples $x_{K+\kappa}$", "prior $x_0$"
COLOURS = {DATA_TITLE: DATA, SAMPLES_TITLE: SAMPLES, PRIOR_TITLE: PRIOR}
_MAX_NAME = 24  # Characters of the name of a class or a data set in a picture.
_FRAME_MS, _LAST_FRAME_MS = 180, 2_000  # Duration of the frames of an animation.

plt.rcParams.update(
    {
        # Small figures with many pixels per inch: their labels stay legible on a page.
        "figure.dpi": 140,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        # Numbers are written out: an offset or a power of ten would lie over the title.
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-6, 9),
        "legend.frameon": False,
    }
)


def panels(columns: int, rows: int = 1, size: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row-major list of equal panels, each `size` inches wide."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    return figure, list(axes.ravel())


def titled_panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a small panel for each title, three in a row."""
    figure, axes = panels(3, -(-len(titles) // 3), size=1.7)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for ax in axes[len(titles) :]:
        ax.set_axis_off()
    return figure, axes[: len(titles)]


def plain(name: str) -> str:
    """Shortens a name that a user chose, and escapes it so that it is not typeset as maths."""
    short = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
    return short.replace("$", r"\$")


def legend_below(ax: Axes) -> None:
    """Adds a legend below a panel, where it covers no curve."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25))


def save_animation(
    figure: Figure, update: Callable[[int], None], steps: Sequence[int], path: Path
) -> Path:
    """Writes a figure as an animated WebP, with a frame for each step, and closes it.

    `update` changes the figure to show a step. The last frame stays longer than the others.
    """
    canvas = FigureCanvasAgg(figure)
    frames = []
    for step in steps:
        update(step)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    plt.close(figure)
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(path) as file:
        frames[0].save(
            file,
            format="webp",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            quality=50,
            method=4,
        )
    return path


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure atomically and closes it. Creates the folder if it is missing."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    plt.close(figure)
    return path

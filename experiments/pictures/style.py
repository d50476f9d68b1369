"""The style of all pictures: colours, sizes and file format."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Needs no screen.

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.files import replacing

DATA, SAMPLES, PRIOR = "#4878a8", "#d1602b", "#8a8a8a"
DATA_TITLE, SAMPLES_TITLE, PRIOR_TITLE = "data", r"samples $x_{K+\kappa}$", "prior $x_0$"
COLOURS = {DATA_TITLE: DATA, SAMPLES_TITLE: SAMPLES, PRIOR_TITLE: PRIOR}
_MAX_NAME = 24  # Characters of the name of a class or a data set in a picture.

plt.rcParams.update(
    {
        # Small figures with many pixels per inch: their labels stay legible on a page.
        "figure.dpi": 140,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def panels(columns: int, rows: int = 1, size: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row-major list of equal panels, each `size` inches wide."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    return figure, list(axes.ravel())


def plain(name: str) -> str:
    """Shortens a name that a user chose, and escapes it so that it is not typeset as maths."""
    short = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
    return short.replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure atomically and closes it. Creates the folder if it is missing."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    plt.close(figure)
    return path

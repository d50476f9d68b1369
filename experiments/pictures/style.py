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
DIVERGING = "RdBu_r"
_MAX_NAME = 40  # Characters of the name of a class or a data set in a picture.

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def panels(columns: int, rows: int = 1, size: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row-major list of equal panels."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    return figure, list(axes.ravel())


def plain(name: str) -> str:
    """Returns a name chosen by a user, shortened and escaped so that it is not read as maths."""
    short = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
    return short.replace("$", r"\$")


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure, complete or not at all, and frees it; the folder is made if missing."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:])
    plt.close(figure)
    return path

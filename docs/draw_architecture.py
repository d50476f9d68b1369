"""Draws the data flow through the packages: `python -m docs.draw_architecture PICTURE.svg`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

EDGE, CORE, INK = "#f3e7df", "#dfe9f3", "#333333"
EDGE_LINE, CORE_LINE = "#d1602b", "#4878a8"
# Name: label, column, row from the top, whether it is in the core.
BOXES = {
    "config": ("configs/*.py\n--config.a.b=value", 0, 0, False),
    "build": ("experiment\nbuilt once", 1, 0, False),
    "data": ("data\nreal images", 0, 1, False),
    "prior": ("priors\n$x_0$", 1, 1, True),
    "flow": ("flow\n$x_K$, no gradient", 2, 1, True),
    "loss": ("bregman\nloss of the ratio", 3, 1, True),
    "state": ("state\nOptax update, EMA", 4, 1, True),
    "potential": ("network, divergence\n$f'(r_\\theta(x))$", 2, 2, True),
    "loop": ("loop\nmapped by parallel", 2, 0, False),
    "checkpoint": ("checkpoints\nmetrics.jsonl", 3, 0, False),
    "report": ("evaluation, pictures\nreport.html", 4, 0, False),
}
ARROWS = [
    ("config", "build"),
    ("build", "loop"),
    ("data", "prior"),
    ("prior", "flow"),
    ("flow", "loss"),
    ("loss", "state"),
    ("potential", "flow"),
    ("state", "potential"),
    ("loop", "flow"),
    ("loop", "checkpoint"),
    ("checkpoint", "report"),
]
WIDTH, HEIGHT, COLUMN, ROW = 1.95, 0.66, 2.3, 1.35


def main(path: Path) -> None:
    """Writes the picture."""
    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "architecture"})
    figure, ax = plt.subplots(figsize=(11.2, 4.4))
    package(ax, (-0.25, -2.75), 11.65, 4.4, EDGE, EDGE_LINE, "experiments/: files, flags, pictures")
    package(ax, (2.1, -2.6), 9.15, 2.4, CORE, CORE_LINE, "fdrl_jax/: pure functions of arrays", 2.2)
    for text, column, row, core in BOXES.values():
        box(ax, (column * COLUMN, -row * ROW + 0.5), text, CORE_LINE if core else EDGE_LINE)
    for start, end in ARROWS:
        arrow(ax, start, end)
    ax.set(xlim=(-0.3, 11.45), ylim=(-2.8, 1.7))
    ax.set_axis_off()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def package(
    ax: Axes,
    corner: tuple[float, float],
    width: float,
    height: float,
    colour: str,
    line: str,
    title: str,
    drop: float = 0.24,
) -> None:
    """Draws a package with its title at a distance below its upper edge."""
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, width, height, style, fc=colour, ec="none", zorder=0))
    y = corner[1] + height - drop
    ax.text(corner[0] + 0.25, y, title, color=line, weight="bold", va="center")


def box(ax: Axes, corner: tuple[float, float], text: str, line: str) -> None:
    """Draws a box."""
    style = "round,pad=0,rounding_size=0.08"
    patch = FancyBboxPatch(corner, WIDTH, HEIGHT, style, fc="white", ec=line, lw=1.2, zorder=2)
    ax.add_patch(patch)
    x, y = corner[0] + WIDTH / 2, corner[1] + HEIGHT / 2
    ax.text(x, y, text, ha="center", va="center", color=INK, zorder=3, linespacing=1.35)


def arrow(ax: Axes, start: str, end: str) -> None:
    """Draws an arrow from the side of one box to that of another."""
    (_, c0, r0, _), (_, c1, r1, _) = BOXES[start], BOXES[end]
    x0, y0 = c0 * COLUMN + WIDTH / 2, -r0 * ROW + 0.5 + HEIGHT / 2
    x1, y1 = c1 * COLUMN + WIDTH / 2, -r1 * ROW + 0.5 + HEIGHT / 2
    connection = "arc3"
    if r0 == r1:
        x0, x1 = x0 + WIDTH / 2, x1 - WIDTH / 2
    elif c0 == c1:
        up = 1 if r0 > r1 else -1
        y0, y1 = y0 + up * HEIGHT / 2, y1 - up * HEIGHT / 2
    else:  # Down from one box, then into the side of the other.
        y0, x1 = y0 - HEIGHT / 2, x1 + WIDTH / 2
        connection = "angle,angleA=-90,angleB=0,rad=6"
    ax.add_patch(
        FancyArrowPatch(
            (x0, y0),
            (x1, y1),
            arrowstyle="-|>",
            mutation_scale=11,
            color=INK,
            connectionstyle=connection,
            shrinkA=0,
            shrinkB=0,
            zorder=4,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

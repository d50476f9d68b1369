"""Pictures of images in [-1, 1], NHWC."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.data import to_uint8
from experiments.pictures.points import spread
from experiments.pictures.style import panels, plain

NUM_IN_GRID = 100


def tile(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Arranges images row by row on a white sheet, [rows * (H + gap), columns * (W + gap), C]."""
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((rows * (height + gap), columns * (width + gap), channels), 255, np.uint8)
    for i, image in enumerate(to_uint8(images)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def show(ax: Axes, sheet: np.ndarray) -> None:
    """Draws a sheet of grey levels without axes."""
    grey = sheet.shape[-1] == 1
    ax.imshow(sheet[..., 0] if grey else sheet, cmap="gray" if grey else None, vmin=0, vmax=255)
    ax.set_axis_off()


def samples_and_data(prior: np.ndarray, samples: np.ndarray, data: np.ndarray) -> Figure:
    """Draws grids of the prior, the flowed samples and the data side by side."""
    titles = ("prior $x_0$", r"samples $x_{K+\kappa}$", "data")
    return _grids(dict(zip(titles, (prior, samples, data), strict=True)))


def translation(
    sources: np.ndarray,
    translated: np.ndarray,
    targets: np.ndarray,
    domains: tuple[str, str] = ("", ""),
    caption: str = "",
) -> Figure:
    """Draws source images, their translations at the same positions, and target images.

    Args:
      sources: source images in [-1, 1], [N, H, W, C].
      translated: translations; `translated[i]` starts at `sources[i]`.
      targets: real images of the target.
      domains: names of the source and the target.
      caption: text below the picture.
    """
    source, target = (name and f": {plain(name)}" for name in domains)
    titles = (f"source{source}", r"translated $x_{K+\kappa}$", f"target{target}")
    figure = _grids(dict(zip(titles, (sources, translated, targets), strict=True)))
    if caption:
        figure.supxlabel(caption, fontsize="medium")
    return figure


def prior_and_data(prior: np.ndarray, data: np.ndarray) -> Figure:
    """Draws grids of the prior and the data side by side (fig. 3)."""
    return _grids({"prior $x_0$": prior, "data": data})


def by_class(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draws one row of images per class that occurs."""
    figure, (ax,) = panels(1, size=3.6)
    show_by_class(ax, images, labels, classes)
    return figure


def show_by_class(
    ax: Axes, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], columns: int = 10
) -> None:
    """Draws one row of images per class that occurs, with its name."""
    present = np.unique(labels)
    rows = [images[labels == label] for label in present]
    columns = min(columns, *map(len, rows), len(images))
    show(ax, tile(np.concatenate([row[:columns] for row in rows]), columns))
    pitch = images.shape[1] + 1
    for place, label in enumerate(present):
        ax.text(-2, (place + 0.5) * pitch, plain(classes[label]), ha="right", va="center")


def flow_strip(
    path: np.ndarray, num_steps: int, start: str = "the prior", columns: int = 12
) -> Figure:
    """Draws the flow of some images from left to right, `x_0 ... x_{K+κ}` (fig. 6).

    Args:
      path: samples along the flow, [K + κ + 1, B, H, W, C].
      num_steps: number of bridging steps K, for the title.
      start: where the flow starts, for the title.
      columns: number of steps to show.
    """
    picked = spread(len(path), columns)
    # Tiled row by row, so that each row shows one sample.
    strip = np.swapaxes(path[picked], 0, 1).reshape(-1, *path.shape[2:])
    figure, (ax,) = panels(1, size=7.0)
    show(ax, tile(strip, len(picked)))
    ax.set_title(f"flow from {start}: steps {', '.join(map(str, picked))} (K = {num_steps})")
    return figure


def interpolations(sheets: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draws interpolated points of the prior and their samples, with common noise (fig. 7).

    Args:
      sheets: `(x_0, samples)` by kind of interpolation, each [paths, points, H, W, C].
    """
    figure, axes = panels(len(sheets), size=6.0)
    for ax, (kind, (start, end)) in zip(axes, sheets.items(), strict=True):
        # Each row of samples has the row of its prior samples above it.
        rows = np.stack([start, end], axis=1).reshape(-1, *start.shape[2:])
        show(ax, tile(rows, start.shape[1]))
        ax.set_title(f"{kind} interpolation: prior, and below it the samples")
    return figure


def course(snapshots: Sequence[tuple[int, np.ndarray]], columns: int = 6) -> Figure:
    """Draws the same samples at several steps of training (fig. 4)."""
    picked = [snapshots[i] for i in spread(len(snapshots), columns)]
    figure, axes = panels(len(picked), size=2.2)
    for ax, (step, samples) in zip(axes, picked, strict=True):
        show(ax, tile(samples[:36], 6))
        ax.set_title(f"step {step:,}")
    return figure


def _grids(columns: dict[str, np.ndarray]) -> Figure:
    figure, axes = panels(len(columns), size=3.6)
    num = min(NUM_IN_GRID, *map(len, columns.values()))
    num -= num % 10 if num > 10 else 0  # Full rows.
    for ax, (title, images) in zip(axes, columns.items(), strict=True):
        show(ax, tile(images[:num], 10))
        ax.set_title(title)
    return figure

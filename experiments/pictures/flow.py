"""Figures of the flow as in the paper: strips of samples on their way, and interpolations."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.pictures import images
from experiments.pictures.points import spread
from experiments.pictures.style import panels

NUM_ROWS = 8


def strips(path: np.ndarray, num_steps: int, start: str) -> Figure:
    """Draws samples along the flow, one per row (fig. 6).

    The path is `x_0 ... x_{K+κ}` of B images, [K + κ + 1, B, H, W, C]. K is `num_steps`, and
    `start` says where the flow starts.
    """
    picked = spread(len(path), 12)
    # Tiled row by row, so that each row shows one sample.
    strip = np.swapaxes(path[picked], 0, 1).reshape(-1, *path.shape[2:])
    figure, (ax,) = panels(1, size=5.6)
    images.show(ax, images.tile(strip, len(picked)))
    pitch = path.shape[3] + 1
    for place, step in enumerate(picked):
        ax.text((place + 0.5) * pitch, -0.1 * pitch, str(step), ha="center", va="bottom")
    ax.set_title(f"steps of the flow from {start} (K = {num_steps})", pad=16)
    return figure


def interpolations(sheets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draws interpolated points of the prior and their samples, with common noise (fig. 7).

    The sheets are `(x_0, samples)` by kind of interpolation, each [paths, points, H, W, C].
    """
    figure, axes = panels(len(sheets), size=4.0)
    for ax, (kind, (start, end)) in zip(axes, sheets.items(), strict=True):
        # Each row of samples has the row of its prior samples above it.
        rows = np.stack([start, end], axis=1).reshape(-1, *start.shape[2:])
        images.show(ax, images.tile(rows, start.shape[1]))
        ax.set_title(f"{kind} interpolation (samples below the prior)")
    return figure

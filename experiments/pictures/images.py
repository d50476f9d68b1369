"""Pictures of images in [-1, 1], NHWC."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.data.decode import to_uint8
from experiments.pictures.style import panels, plain, styled

NUM_SHOWN = 100
NUM_ROWS = 8  # Samples along the flow.


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images row by row on a white sheet, [rows * (H + 1), columns * (W + 1), C]."""
    missing = -len(images) % columns
    margins = ((0, missing), (0, 1), (0, 1), (0, 0))
    padded = np.pad(to_uint8(images), margins, constant_values=255)
    height, width, channels = padded.shape[1:]
    rows = padded.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, channels)


def square(images: np.ndarray) -> np.ndarray:
    """Arranges images as `tile` does, with about as many rows as columns."""
    return tile(images, math.ceil(math.sqrt(len(images))))


def show(ax: Axes, sheet: np.ndarray) -> None:
    """Draws a sheet of grey levels without axes."""
    grey = sheet.shape[-1] == 1
    ax.imshow(sheet[..., 0] if grey else sheet, cmap="gray" if grey else None, vmin=0, vmax=255)
    ax.set_axis_off()


@styled
def strips(path: np.ndarray, steps: Sequence[int], title: str) -> Figure:
    """Draws samples at steps of the flow, [len(steps), B, H, W, C], one per row (fig. 6)."""
    # Tiled row by row, so that each row shows one sample.
    strip = np.swapaxes(path[:, :NUM_ROWS], 0, 1).reshape(-1, *path.shape[2:])
    figure, (ax,) = panels([""], size=5.6)
    show(ax, tile(strip, len(steps)))
    pitch = path.shape[3] + 1
    for place, step in enumerate(steps):
        ax.text((place + 0.5) * pitch, -0.1 * pitch, str(step), ha="center", va="bottom")
    ax.set_title(title, pad=18)
    return figure


@styled
def by_class(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draws one row of images per class that occurs, with its name."""
    figure, (ax,) = panels([""], size=5.0)
    present = np.unique(labels)
    rows = [images[labels == label] for label in present]
    columns = min(10, *map(len, rows))
    show(ax, tile(np.concatenate([row[:columns] for row in rows]), columns))
    pitch = images.shape[1] + 1
    for place, label in enumerate(present):
        ax.text(-2, (place + 0.5) * pitch, plain(classes[label]), ha="right", va="center")
    return figure


@styled
def neighbours(samples: np.ndarray, nearest: Mapping[str, np.ndarray]) -> Figure:
    """Draws samples [Q, ...] and by feature space the nearest images [Q, k, ...] (fig. 10)."""
    titles = [f"sample | nearest by {space.replace('_', ' ')}" for space in nearest]
    figure, axes = panels(titles, size=4.2, height=3.2)
    for ax, images in zip(axes, nearest.values(), strict=True):
        sheet = tile(images.reshape(-1, *images.shape[2:]), images.shape[1])
        gap = ((0, 0), (0, max(1, samples.shape[2] // 3)), (0, 0))
        left = np.pad(tile(samples[: len(images)], 1), gap, constant_values=255)
        show(ax, np.concatenate([left, sheet], axis=1))
    return figure

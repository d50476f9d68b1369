"""Pictures of densities in the plane."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures.style import (
    COLOURS,
    DATA_TITLE,
    PRIOR,
    SAMPLES,
    panels,
    styled,
    titled_panels,
)

NUM_SHOWN = 4_000  # More points would cover each other.


def frame(data: np.ndarray) -> tuple[float, float]:
    """Returns a range for both axes that contains the data and a margin."""
    reach = float(np.quantile(np.abs(data), 0.999)) * 1.25
    return -reach, reach


@styled
def side_by_side(columns: Mapping[str, np.ndarray]) -> Figure:
    """Draws sets of points side by side, with titles and a common range that holds the data."""
    figure, axes = panels(len(columns))
    for ax, (title, points) in zip(axes, columns.items(), strict=True):
        scatter(ax, points, COLOURS[title], frame(columns[DATA_TITLE]))
        ax.set_title(title)
    return figure


@styled
def log_ratio_and_drift(
    log_ratio_fn: Callable[[np.ndarray], np.ndarray],
    drift_fn: Callable[[np.ndarray], np.ndarray],
    data: np.ndarray,
) -> Figure:
    """Draws the estimated `log r` as a heat map with the drift as arrows, over the data."""
    low, high = frame(data)
    fine, coarse = _grid(low, high, 160), _grid(low, high, 24)
    values = log_ratio_fn(fine).reshape(160, 160)
    limit = max(float(np.quantile(np.abs(values), 0.95)), 1e-6)
    figure, (ax,) = panels(1, size=3.6)
    image = ax.imshow(
        values,
        extent=(low, high, low, high),
        origin="lower",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
    )
    figure.colorbar(image, ax=ax, label=r"$\log r = \log\,\tilde{q}/p$", shrink=0.8, extend="both")
    x, y = data[:NUM_SHOWN].T
    ax.scatter(x, y, s=0.4, color="black", alpha=0.35, linewidths=0)
    arrows = drift_fn(coarse)
    length = np.linalg.norm(arrows, axis=-1, keepdims=True)
    # The square root of the length, because the drift is many times larger far from the data.
    shown = arrows / np.maximum(np.sqrt(length), 1e-9)
    ax.quiver(*coarse.T, *shown.T, color="black", width=0.0025, alpha=0.8)
    ax.set(xlim=(low, high), ylim=(low, high), xticks=[], yticks=[])
    ax.set_title("estimated log-ratio and drift")
    return figure


@styled
def over_data(sets: Sequence[tuple[str, np.ndarray]], data: np.ndarray) -> Figure:
    """Draws a panel per title, with its points over the data in grey."""
    figure, axes = titled_panels([title for title, _ in sets])
    for ax, (_, points) in zip(axes, sets, strict=True):
        scatter(ax, data, PRIOR, frame(data), alpha=0.15)
        scatter(ax, points, SAMPLES, frame(data))
    return figure


@styled
def moving(path: np.ndarray, data: np.ndarray) -> tuple[Figure, Callable[[int], None]]:
    """Returns a figure of points over the data, and the function that shows a step of a path."""
    figure, (ax,) = panels(1, size=2.6)
    scatter(ax, data, PRIOR, frame(data), alpha=0.15)
    dots = ax.scatter([], [], s=1.5, color=SAMPLES, alpha=0.6, linewidths=0)
    title = ax.set_title("$x_0$")

    def show(step: int) -> None:
        dots.set_offsets(path[step, :NUM_SHOWN])
        title.set_text(f"$x_{{{step}}}$")

    return figure, show


def spread(count: int, most: int) -> list[int]:
    """Returns at most `most` indices spread evenly over `count`, including first and last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def scatter(
    ax: Axes, points: np.ndarray, colour: str, limits: tuple[float, float], alpha: float = 0.5
) -> None:
    """Draws points in one colour, without ticks."""
    x, y = points[:NUM_SHOWN].T
    ax.scatter(x, y, s=1.2, color=colour, alpha=alpha, linewidths=0)
    ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")


def _grid(low: float, high: float, count: int) -> np.ndarray:
    axis = np.linspace(low, high, count, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

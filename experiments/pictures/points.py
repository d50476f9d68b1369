"""Pictures of densities in the plane."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pictures.style import panels, styled

NUM_SHOWN = 4_000  # More points would cover each other.


def frame(data: np.ndarray) -> tuple[float, float]:
    """Returns a range for both axes that contains the data and a margin."""
    reach = float(np.quantile(np.abs(data), 0.999)) * 1.25
    return -reach, reach


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
    figure, (ax,) = panels(["estimated log-ratio and drift"], size=3.6)
    place: dict[str, Any] = {"extent": (low, high, low, high), "origin": "lower"}
    image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, **place)
    figure.colorbar(image, ax=ax, label=r"$\log r = \log\,\tilde{q}/p$", shrink=0.8, extend="both")
    x, y = data[:NUM_SHOWN].T
    ax.scatter(x, y, s=0.4, color="black", alpha=0.35, linewidths=0)
    arrows = drift_fn(coarse)
    length = np.linalg.norm(arrows, axis=-1, keepdims=True)
    # The square root of the length, because the drift is many times larger far from the data.
    shown = arrows / np.maximum(np.sqrt(length), 1e-9)
    ax.quiver(*coarse.T, *shown.T, color="black", width=0.0025, alpha=0.8)
    ax.set(xlim=(low, high), ylim=(low, high), xticks=[], yticks=[])
    return figure


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

"""Curves of the metrics over training."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.pictures.style import DATA, PRIOR, SAMPLES, panels


def training(records: list[dict[str, Any]]) -> Figure:
    """Draws loss, mean ratio on data and flowed samples, and norms of gradient and drift."""
    steps = [r["step"] for r in records]

    def values(name: str) -> np.ndarray:
        return np.array([np.nan if r[name] is None else r[name] for r in records])

    figure, (loss, ratio, norms) = panels(3, size=3.4)
    loss.plot(steps, values("loss"), color=SAMPLES)
    loss.set(title="Bregman loss", xlabel="step")
    ratio.plot(steps, values("ratio_real"), color=DATA, label="on data")
    ratio.plot(steps, values("ratio_flowed"), color=SAMPLES, label="on flowed samples")
    ratio.axhline(1.0, color=PRIOR, linewidth=0.8, linestyle=":")
    ratio.set(title=r"mean ratio $r = \tilde{q}/p$", xlabel="step")
    ratio.legend()
    norms.semilogy(steps, values("grad_norm"), color=DATA, label="gradient of the loss")
    norms.semilogy(steps, values("drift_norm"), color=SAMPLES, label="drift at $x_K$")
    norms.set(title="norms", xlabel="step")
    norms.legend()
    return figure

"""Curves of the metrics over training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.metrics_log import PREFIX
from experiments.pictures.style import DATA, PRIOR, SAMPLES, panels


def training(records: list[dict[str, Any]], best: Mapping[str, Any] | None = None) -> Figure:
    """Draws loss, mean ratio on data and flowed samples, norms, and the metric if one was taken.

    Args:
      records: lines of the log.
      best: what `experiments.best` knows of the best checkpoint.
    """
    steps = [r["step"] for r in records]

    def values(name: str) -> np.ndarray:
        found = (r.get(name) for r in records)
        return np.array([np.nan if value is None else value for value in found])

    judged = sorted({name for r in records for name in r if name.startswith(PREFIX)})
    figure, (loss, ratio, norms, *rest) = panels(4 if judged else 3, size=3.4)
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
    for ax in rest:
        for name in judged:
            taken = ~np.isnan(values(name))
            label = name.removeprefix(PREFIX)
            ax.plot(np.array(steps)[taken], values(name)[taken], ".-", label=label)
        if best is not None:
            ax.axvline(best["step"], color=PRIOR, linestyle=":", label="best checkpoint")
        ax.set(title="metric of samples", xlabel="step")
        ax.legend()
    return figure

"""Pictures of the effect of a classifier's weight on class-conditional samples."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.pictures.images import show_by_class
from experiments.pictures.style import DATA, PRIOR, SAMPLES, panels

_COLOURS = {"robust": SAMPLES, "plain": DATA}
Row = tuple[str, float, float, float]


def accuracy_and_diversity(
    rows: Sequence[Row],
    samples: Mapping[str, np.ndarray],
    shown_weight: float,
    classes: Sequence[str],
) -> Figure:
    """Draws class accuracy and diversity over the weight, and samples of both classifiers.

    Args:
      rows: (classifier, weight, class accuracy, diversity).
      samples: samples by classifier; sample `i` is of class `i` modulo the number of classes.
      shown_weight: weight of these samples.
      classes: names of the classes.
    """
    kinds = list(samples)
    figure, axes = panels(2 + len(kinds), size=3.0)
    for ax, column, title in zip(axes, (2, 3), ("class accuracy", "diversity"), strict=False):
        for kind in kinds:
            line = [row for row in rows if row[0] == kind]
            ax.plot(
                [row[1] for row in line],
                [row[column] for row in line],
                marker="o",
                color=_COLOURS[kind],
                label=f"{kind} classifier",
            )
        ax.set_xscale("symlog", linthresh=0.03)
        weights = sorted({weight for _, weight, *_ in rows})
        ax.set_xticks(weights, [f"{weight:g}" for weight in weights], rotation=45)
        ax.minorticks_off()
        ax.set_xlabel(r"weight $\varphi$")
        ax.set_ylim(bottom=0)
        ax.set_title(title)
    axes[0].legend(loc="lower right")
    axes[1].axhline(1.0, color=PRIOR, linestyle="--")
    across = axes[1].get_yaxis_transform()
    axes[1].text(1.0, 1.02, "real images", ha="right", color=PRIOR, transform=across)
    for ax, kind in zip(axes[2:], kinds, strict=True):
        labels = np.arange(len(samples[kind])) % len(classes)
        show_by_class(ax, samples[kind], labels, classes)
        ax.set_title(rf"{kind} classifier, $\varphi$ = {shown_weight:g}")
    return figure

"""Class accuracy and diversity of class-conditional samples, by the weight of the classifier.

Run: python -m benchmarks.conditioning --workdir=runs/digits --robust=runs/digits_classifier
  --plain=runs/digits_plain --out=runs/conditioning [--num=100]
Both classifiers are from `--mode=train_classifier` with configs/digits_classifier.py, the plain one
with `--config.attack.num_steps=0`. A third classifier decides whether a sample belongs to its
class: a support-vector classifier of real training images, which guides no samples. Diversity is
the mean distance of two samples of a class, divided by that of two real images of the class, in the
space of decision values of this classifier. The program prints a table, and writes it with a
picture.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments.build import Experiment
from experiments.command_line import Command
from experiments.evaluation.classes import SvcClassifier
from experiments.pictures import save
from experiments.pictures.images import show_by_class
from experiments.pictures.style import DATA, PRIOR, SAMPLES, panels
from experiments.sampling.conditional import ALL, conditioned
from experiments.sampling.draw import sample_state
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training.state import TrainState

WEIGHTS = (0.0, 0.03, 0.1, 0.2, 0.3, 1.0, 3.0)
SHOWN_WEIGHT = 0.3
NUM_REFINE_STEPS = 10
COLOURS = {"robust": SAMPLES, "plain": DATA}
Row = tuple[str, float, float, float]


def main() -> None:
    """Prints the table and writes it with the picture."""
    options = _options()
    opened = open_checkpoint(Command(mode="sample", folder=Path(options.workdir)))
    experiment, state = opened.experiment, opened.checkpoint.state
    source = experiment.source
    train_labels = source.labels.train
    svc = SvcClassifier(source.train(), train_labels)
    spread = _spread(svc, source.train(), train_labels)
    rows, shown = [], {}
    cases = [(kind, w) for kind in ("robust", "plain") for w in WEIGHTS]
    for kind, weight in tqdm(cases, unit="case"):
        samples, labels = _draw(experiment, state, getattr(options, kind), weight, options.num)
        accuracy = float(np.mean(svc.predict(samples) == labels))
        diversity = float(np.mean(_spread(svc, samples, labels) / spread))
        rows.append((kind, weight, accuracy, diversity))
        if weight == SHOWN_WEIGHT:
            shown[kind] = samples[: 10 * len(source.classes)]
    table = _table(rows)
    print(table)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "conditioning.md").write_text(table)
    figure = accuracy_and_diversity(rows, shown, SHOWN_WEIGHT, source.classes)
    print(f"picture: {save(figure, out / 'conditioning.png')}")


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
                color=COLOURS[kind],
                label=f"{kind} classifier",
            )
        ax.set_xscale("symlog", linthresh=0.03)
        weights = sorted({weight for _, weight, *_ in rows})
        ax.set_xticks(weights, [f"{weight:g}" for weight in weights], rotation=90)
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, text in (
        ("workdir", "folder of the run on digits"),
        ("robust", "folder of a classifier trained under attack"),
        ("plain", "folder of a classifier trained without attack"),
        ("out", "folder for the table and the picture"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    parser.add_argument("--num", type=int, default=100, help="samples per class")
    return parser.parse_args()


def _draw(
    experiment: Experiment, state: TrainState, folder: str, weight: float, num: int
) -> tuple[np.ndarray, np.ndarray]:
    condition = {
        "condition.label": ALL,
        "condition.classifier": folder,
        "condition.weight": weight,
        "condition.num_refine_steps": NUM_REFINE_STEPS,
    }
    wanted = {**experiment.settings, **condition}
    of_classes = conditioned(dataclasses.replace(experiment, settings=wanted))
    num_classes = len(experiment.source.classes)
    samples = sample_state(of_classes, state, num * num_classes).refined
    return np.clip(samples, -1.0, 1.0), np.arange(len(samples)) % num_classes


def _spread(svc: SvcClassifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the mean distance of two images of a class, [number of classes]."""

    def of_class(features: np.ndarray) -> float:
        distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
        return float(distances.sum() / (len(features) * (len(features) - 1)))

    return np.array([of_class(svc.features(images[labels == k])) for k in np.unique(labels)])


def _table(rows: list[tuple[str, float, float, float]]) -> str:
    lines = ["| classifier | weight | class accuracy | diversity |", "|---|---|---|---|"]
    lines += [f"| {kind} | {w:g} | {100 * a:.1f}% | {d:.2f} |" for kind, w, a, d in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

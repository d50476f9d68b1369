"""How the weight of a classifier changes class-conditional samples (figure 9a of the paper).

    python -m examples.guidance_weight --workdir=runs/cifar10_small --guide=runs/cifar10_robust \
        --judge=runs/cifar10_classifier --weights 0 0.1 0.3

Draws samples of all classes in turn with each weight. The guide is the folder of a classifier from
`--mode=classifier`, or the file of a network of the library robustness (see
`examples/robustness_classifier.py`). The judge is the folder of another classifier. A flow can fool
its guide, so the judge's shares are the ones to read. For each weight, the program prints the share
of samples that each classifier assigns to the intended class, the Fréchet distance to held-out
images in the features of the judge, and the diversity: the mean distance in these features between
samples of a class, divided by that between real images of the class. It writes the samples, and a
picture with a row per class, to --out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

from examples import robustness_classifier
from experiments import classifier, draw, precision, run, sample
from experiments.command import Command
from experiments.data.decode import to_uint8
from experiments.errors import UserError
from experiments.evaluation.classes import Classifier
from experiments.pictures import images, save
from experiments.run import Opened
from fdrl_jax.metrics import frechet_distance


class Row(NamedTuple):
    """The figures of samples, or of real images, whose classes are known."""

    by_guide: float
    by_judge: float
    frechet: float
    diversity: float

    def __str__(self) -> str:
        shares = f"{self.by_guide:.1%}, {self.by_judge:.1%}"
        return f"{shares}, Fréchet {self.frechet:.3g}, diversity {self.diversity:.2f}"


def guide_of(path: Path, opened: Opened) -> tuple[classifier.Apply, Any]:
    """Opens a folder of a classifier, or a file of the library robustness."""
    if path.is_dir():
        source = opened.experiment.source
        return classifier.open_to_guide(path, source.classes, source.event_shape)
    logits = robustness_classifier.read(path)
    return (lambda _, x: logits(x)), ()


def measure(
    x: np.ndarray,
    labels: np.ndarray,
    guide: tuple[classifier.Apply, Any],
    judge: Classifier,
    real: tuple[np.ndarray, np.ndarray],
) -> Row:
    """Computes the figures of images [N, H, W, C] that should be of the classes `labels` [N].

    `real` are the judge's features of held-out images, and their classes.
    """
    apply, variables = guide
    guessed = robustness_classifier.all_logits(lambda x: apply(variables, x), x).argmax(axis=1)
    probabilities, features = judge(x)
    return Row(
        float(np.mean(guessed == labels)),
        float(np.mean(probabilities.argmax(axis=1) == labels)),
        frechet_distance(features, real[0]),
        _spread(features, labels) / _spread(*real),
    )


def _spread(features: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean distance of two images of a class, over classes."""
    return float(np.mean([pdist(features[labels == label]).mean() for label in np.unique(labels)]))


def main(argv: Sequence[str]) -> list[Row]:
    """Prints and returns the figures for real images, and for samples with each weight."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="the run whose samples are guided")
    add("--guide", type=Path, required=True, help="a folder, or a file of the library robustness")
    add("--judge", type=Path, required=True, help="the folder of another classifier")
    add("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    add("--num_refine_steps", type=int, help="other than those of the run")
    add("--num_samples", type=int, default=1_000, help="of each weight, of all classes together")
    add("--out", type=Path, default=Path("runs/guidance_weight"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    precision.set_cpu_flags(bfloat16=True)  # Before JAX starts its backend.
    changes: dict[str, Any] = {"condition.label": sample.ALL}
    if options.num_refine_steps is not None:
        changes["condition.num_refine_steps"] = options.num_refine_steps
    opened = run.open_checkpoint(Command(mode="sample", folder=options.workdir, changes=changes))
    source, guide = opened.experiment.source, guide_of(options.guide, opened)
    judge, _ = classifier.open_to_judge(options.judge, source.classes, source.event_shape)
    reference: Any = opened.run.metric_reference  # Of images with classes, as is the judge.
    real = judge(reference.images)[1], reference.labels
    other_half = real[0][1::2], real[1][1::2]
    rows = [measure(reference.images[::2], reference.labels[::2], guide, judge, other_half)]
    print(f"real images, one half and the other: {rows[0]}")
    for weight in options.weights:
        changes["condition.weight"] = weight
        command = Command(mode="sample", folder=options.workdir, changes=changes)
        opened = run.open_checkpoint(command)
        model = sample.conditioned(opened.experiment, guide)
        drawn = draw.Sampler(model)(
            *draw.on_devices(model, opened.state), {"refined": options.num_samples}, progress=True
        )["refined"]
        labels = np.arange(len(drawn)) % len(source.classes)
        rows.append(measure(np.clip(drawn, -1.0, 1.0), labels, guide, judge, real))
        print(f"weight {weight:g}: {rows[-1]}")
        np.savez(options.out / f"weight_{weight:g}.npz", to_uint8(drawn))
        figure = images.by_class(drawn, labels, source.classes)
        save(figure, options.out / f"weight_{weight:g}.png")
    return rows


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")

"""Metrics by a classifier of real images: Fréchet distance, confidence and class balance."""

from typing import Any, Protocol

import numpy as np

from experiments.evaluation import draws
from experiments.evaluation.draws import Indices, Pools
from experiments.evaluation.metrics import Metric
from fdrl_jax.metrics import frechet_distance


class Classifier(Protocol):
    """A classifier with a feature space.

    Attributes:
      space: name of the feature space in names of metrics.
    """

    @property
    def space(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """Returns a description of the classifier for the record."""

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps images in [-1, 1], [N, H, W, C], to probabilities [N, classes], features [N, D]."""


def evaluate(
    classifier: Classifier, images: Pools, chosen: list[Indices]
) -> tuple[list[Metric], dict[str, list[float]]]:
    """Computes the metrics by a classifier.

    Args:
      classifier: a classifier of real images.
      images: images in [-1, 1].
      chosen: the draws.

    Returns:
      The metrics, and the share of each class among samples, the prior and held-out images.
    """
    num_classes = classifier.probabilities_and_features(images.images[:1])[0].shape[1]

    def in_one(side: np.ndarray) -> np.ndarray:
        return np.concatenate(classifier.probabilities_and_features(side), axis=1)

    def scores(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        probabilities, features = np.split(rows, [num_classes], axis=1)
        shares = _shares(probabilities)
        return {
            "frechet": frechet_distance(features, reference[:, num_classes:]),
            "top_probability": float(probabilities.max(axis=1).mean()),
            "smallest_class_share": float(shares.min()),
            "largest_class_share": float(shares.max()),
        }

    pools = images.map(in_one)
    sides = {"samples": pools.samples, "prior": pools.prior, "real": pools.images}
    shares = {k: _shares(rows[:, :num_classes]).round(4).tolist() for k, rows in sides.items()}
    return draws.compare(classifier.space, scores, pools, chosen), shares


def _shares(probabilities: np.ndarray) -> np.ndarray:
    counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return np.asarray(counts / len(probabilities))

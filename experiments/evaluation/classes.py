"""Metrics by a classifier of real images: Fréchet distance, confidence and class balance."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments.evaluation import draws
from experiments.evaluation.draws import Pool
from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.references import ImageReference
from experiments.evaluation.rows import flat
from fdrl_jax.metrics import frechet_distance

# `images [N, H, W, C] in [-1, 1] -> (probabilities [N, classes], features [N, D])`.
Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class SvcClassifier:
    """Classifies images by their pixels, independently of the estimator.

    Its features are the pairwise decision values, 45 for ten classes. They represent what makes a
    digit: the data-dependent prior matches mean and covariance of the pixels, but is far from the
    data in this space.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Fits the classifier to real images [N, H, W, C] and labels. The fit is deterministic."""
        from sklearn.svm import SVC

        # Chosen for the 8 x 8 digits; for other images it is scaled by their pixels.
        gamma = 0.03 if images.shape[1:] == (8, 8, 1) else "scale"
        self._data = flat(images), labels
        self._svc = SVC(C=10.0, gamma=gamma, decision_function_shape="ovo").fit(*self._data)

    @functools.cached_property
    def _calibrated(self) -> Any:
        """The classifier with probabilities, which needs six more fits."""
        from sklearn.base import clone
        from sklearn.calibration import CalibratedClassifierCV

        svc = clone(self._svc).set_params(decision_function_shape="ovr")
        return CalibratedClassifierCV(svc, cv=5, ensemble=False).fit(*self._data)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the most probable class of each image, [N]."""
        return self._svc.predict(flat(np.clip(images, -1.0, 1.0)))

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns class probabilities [N, C] and pairwise decision values [N, C (C - 1) / 2]."""
        rows = flat(np.clip(images, -1.0, 1.0))
        return self._calibrated.predict_proba(rows), self.features(images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the pairwise decision values, [N, C (C - 1) / 2]."""
        return self._svc.decision_function(flat(np.clip(images, -1.0, 1.0)))


def features_of(classifier: Classifier) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function `images [N, H, W, C] -> features [N, D]` of a classifier."""
    return lambda images: classifier(images)[1]


def svc_of(reference: ImageReference) -> SvcClassifier | None:
    """Fits a classifier of pixels, if the reference has images for it."""
    if reference.fit_images is None or reference.fit_labels is None:
        return None
    return SvcClassifier(reference.fit_images, reference.fit_labels)


def evaluate(
    space: str,
    classifier: Classifier,
    pool: Pool,
    labels: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[list[Metric], dict[str, list[float]]]:
    """Computes the metrics by a classifier, whose features are a space of this name.

    Returns them with the share of each class among samples, the prior and held-out images. If these
    three have `labels`, at least as many as images, the metrics include the accuracy on each.
    """
    probabilities, features = classifier(pool.images)
    num_classes = probabilities.shape[1]

    def scores(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        probabilities, features = np.split(rows, [num_classes], axis=1)
        shares = _shares(probabilities)
        return {
            "frechet": frechet_distance(features, reference[:, num_classes:]),
            "top_probability": float(probabilities.max(axis=1).mean()),
            "smallest_class_share": float(shares.min()),
            "largest_class_share": float(shares.max()),
        }

    shares = {
        side: _shares(probabilities[pool.rows[group]]).round(4).tolist()
        for side, group in (("samples", "samples"), ("prior", "prior"), ("real", "held_out"))
    }
    both = np.concatenate([probabilities, features], axis=1)
    metrics = draws.compare(space, scores, both, pool.draws)
    if labels:
        predicted = {group: probabilities[pool.rows[group]].argmax(axis=1) for group in labels}
        sides = [[np.mean(found == labels[g][: len(found)])] for g, found in predicted.items()]
        metrics.append(measured("class_accuracy", *sides, space=space))
    return metrics, shares


def _shares(probabilities: np.ndarray) -> np.ndarray:
    counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return np.asarray(counts / len(probabilities))

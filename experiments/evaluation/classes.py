"""Metrics by a classifier of real images: Fréchet distance, confidence and class balance."""

from typing import Any, Protocol

import numpy as np

from experiments.evaluation import draws
from experiments.evaluation.draws import Indices, Pools
from experiments.evaluation.metrics import Metric
from experiments.evaluation.references import Fit
from fdrl_jax.metrics import frechet_distance
from fdrl_jax.metrics.rows import flat

_SHAPE_OF_DIGITS = (8, 8, 1)


class Classifier(Protocol):
    """A classifier whose features form a space of this name in names of metrics."""

    @property
    def space(self) -> str: ...

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps images in [-1, 1], [N, H, W, C], to probabilities [N, classes], features [N, D]."""


class SvcClassifier:
    """Classifies images by their pixels, independently of the estimator.

    Its features are the pairwise decision values, 45 for ten classes. They represent what makes a
    digit: the data-dependent prior matches mean and covariance of the pixels, but is far from the
    data in this space.
    """

    space = "svc"

    def __init__(self, fit: Fit, *, probabilities: bool = True) -> None:
        """Fits the classifier to real images. The fit is deterministic.

        Without `probabilities`, `probabilities_and_features` is not available, which needs six
        fits.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        # Chosen for the 8 x 8 digits; for other images it is scaled by their pixels.
        gamma = 0.03 if fit.images.shape[1:] == _SHAPE_OF_DIGITS else "scale"
        options: dict[str, Any] = {"C": 10.0, "gamma": gamma}
        rows = flat(fit.images)
        self._svc = SVC(**options, decision_function_shape="ovo").fit(rows, fit.labels)
        self._calibrated = None
        if probabilities:
            calibrated = CalibratedClassifierCV(SVC(**options), cv=5, ensemble=False)
            self._calibrated = calibrated.fit(rows, fit.labels)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the most probable class of each image, [N]."""
        return self._svc.predict(flat(np.clip(images, -1.0, 1.0)))

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns class probabilities [N, C] and pairwise decision values [N, C (C - 1) / 2]."""
        if self._calibrated is None:
            raise ValueError("fitted without probabilities")
        rows = flat(np.clip(images, -1.0, 1.0))
        return self._calibrated.predict_proba(rows), self.features(images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the pairwise decision values, [N, C (C - 1) / 2]."""
        return self._svc.decision_function(flat(np.clip(images, -1.0, 1.0)))


def evaluate(
    classifier: Classifier, images: Pools, chosen: list[Indices]
) -> tuple[list[Metric], dict[str, list[float]]]:
    """Computes the metrics by a classifier.

    Returns them with the share of each class among samples, the prior and held-out images.
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

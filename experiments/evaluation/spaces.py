"""Feature spaces of images: what a network, a classifier or fixed filters see of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import random_conv_features

# `images [N, H, W, C] in [-1, 1] -> (probabilities [N, classes], features [N, D])`.
Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Seen(NamedTuple):
    """What a feature space sees of images."""

    features: np.ndarray  # [N, D].
    classes: np.ndarray | None = None  # Those that a classifier assigns, one-hot [N, C].
    confidence: np.ndarray | None = None  # Their probabilities, [N], if it has some.


Space = Callable[[np.ndarray], Seen]  # Of images [N, H, W, C] in [-1, 1].


def spaces_of(reference: ImageReference, classifier: Classifier | None = None) -> dict[str, Space]:
    """Returns the feature spaces that images are compared in, by name, most telling first."""
    spaces: dict[str, Space] = {}
    if reference.starts is None and (svc := svc_of(reference)) is not None:
        spaces["svc"] = svc
    if classifier is not None:
        spaces["classifier"] = of_classifier(classifier)
    return {**spaces, "random_conv": lambda images: Seen(random_conv_features(images))}


def of_classifier(classifier: Classifier) -> Space:
    """Returns the space of the penultimate layer of a classifier."""

    def look(images: np.ndarray) -> Seen:
        probabilities, features = classifier(images)
        classes = _one_hot(probabilities.argmax(axis=1), probabilities.shape[1])
        return Seen(features, classes, probabilities.max(axis=1))

    return look


def svc_of(reference: ImageReference) -> Space | None:
    """Fits a support-vector classifier of pixels, if the reference has images for it.

    Its features are the pairwise decision values, 45 for ten classes: what makes a digit, which a
    prior with mean and covariance of the pixels misses. The fit is deterministic.
    """
    if reference.fit_images is None or reference.fit_labels is None:
        return None
    from sklearn.svm import SVC

    # Chosen for the 8 x 8 digits; for other images it is scaled by their pixels.
    gamma = 0.03 if reference.fit_images.shape[1:] == (8, 8, 1) else "scale"
    svc = SVC(C=10.0, gamma=gamma, decision_function_shape="ovo")
    svc.fit(_pixels(reference.fit_images), reference.fit_labels)

    def look(images: np.ndarray) -> Seen:
        pixels = _pixels(images)
        classes = _one_hot(svc.predict(pixels), int(svc.classes_.max()) + 1)
        return Seen(svc.decision_function(pixels), classes)

    return look


def _one_hot(labels: np.ndarray, num: int) -> np.ndarray:
    return np.asarray(labels[:, None] == np.arange(num))


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.clip(images, -1.0, 1.0).reshape(len(images), -1).astype(np.float64)

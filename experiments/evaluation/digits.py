"""Metrics of digits: what a classifier of real digits makes of the samples."""

from typing import Any, NamedTuple, NoReturn

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from experiments.data import Source
from experiments.errors import UserError
from fdrl_jax.metrics import frechet_distance


class Judge(NamedTuple):
    """A support-vector classifier of real digits, and the same with calibrated probabilities."""

    classifier: SVC
    calibrated: CalibratedClassifierCV

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the 45 pairwise decision values, [N, 45].

        A fixed space of what matters in a digit: equal mean and covariance of pixels, which the
        data-dependent prior has, do not suffice there.
        """
        return self.classifier.decision_function(_rows(images))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each digit, [N, 10]."""
        return self.calibrated.predict_proba(_rows(images))


def fit_judge(images: np.ndarray, labels: np.ndarray) -> Judge:
    """Fits the judge to real images: the same at each call, as the fit has no randomness.

    Args:
      images: real training images in [-1, 1], [N, H, W, 1].
      labels: their digits, [N].
    """
    classifier = SVC(C=10.0, gamma=0.03, decision_function_shape="ovo")
    calibrated = CalibratedClassifierCV(SVC(C=10.0, gamma=0.03), cv=5, ensemble=False)
    return Judge(classifier.fit(_rows(images), labels), calibrated.fit(_rows(images), labels))


def metrics(source: Source, samples: np.ndarray, prior: np.ndarray) -> dict[str, Any]:
    """Computes class probabilities and Fréchet distances of samples of `digits`.

    The judge sees every other training image, so the rest is as new to it as the held-out set and
    the samples are: the Fréchet distance of that rest is the floor, of real images. Fréchet
    distances depend on the number of images, so all are taken at the size of the held-out set.
    """
    labels = source.labels or _no_labels(source)
    train_labels, held_out_labels = labels.train, labels.held_out
    train, held_out = source.train(), source.held_out(len(held_out_labels), 0)
    judge = fit_judge(train[::2], train_labels[::2])
    probabilities = judge.probabilities(samples)
    shares = np.bincount(probabilities.argmax(axis=-1), minlength=10) / len(samples)
    reference = judge.features(held_out)

    def frechet(images: np.ndarray) -> float:
        return frechet_distance(judge.features(images[: len(held_out)]), reference)

    predicted = judge.classifier.predict(_rows(held_out))
    return {
        "top_probability": float(probabilities.max(axis=-1).mean()),
        "top_probability_of_data": float(judge.probabilities(held_out).max(axis=-1).mean()),
        "smallest_class_share": float(shares.min()),
        "largest_class_share": float(shares.max()),
        "class_shares": [round(float(s), 4) for s in shares],
        "frechet_distance": frechet(samples),
        "frechet_distance_of_prior": frechet(prior),
        "frechet_distance_of_data": frechet(train[1::2]),
        "classifier_accuracy": float(np.mean(predicted == held_out_labels)),
        "num_samples": len(samples),
    }


def _no_labels(source: Source) -> NoReturn:
    raise UserError(f"data {source.name!r} has no labels, so its samples cannot be judged by class")


def _rows(images: np.ndarray) -> np.ndarray:
    return np.clip(images, -1.0, 1.0).reshape(len(images), -1)

"""A support-vector classifier of pixels, which suffices for digits and is fitted in a second."""

from typing import Any

import numpy as np

from experiments.evaluation.references import Fit
from fdrl_jax.metrics.rows import flat

_CHANNELS_OF_DIGITS = (8, 8, 1)


class SvcClassifier:
    """Classifies images by their pixels, independently of the estimator.

    Its features are the pairwise decision values, 45 for ten classes. They represent what makes a
    digit: the data-dependent prior matches mean and covariance of the pixels, but is far from the
    data in this space.
    """

    space = "svc"

    def __init__(self, fit: Fit, *, probabilities: bool = True) -> None:
        """Fits the classifier to real images. The fit is deterministic.

        Args:
          fit: real training images and their labels.
          probabilities: whether `probabilities_and_features` is needed, which requires six fits.
        """
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.svm import SVC

        # Chosen for the 8 x 8 digits; for other images it is scaled by their pixels.
        gamma = 0.03 if fit.images.shape[1:] == _CHANNELS_OF_DIGITS else "scale"
        options: dict[str, Any] = {"C": 10.0, "gamma": gamma}
        rows = flat(fit.images)
        self._svc = SVC(**options, decision_function_shape="ovo").fit(rows, fit.labels)
        self._calibrated = None
        if probabilities:
            calibrated = CalibratedClassifierCV(SVC(**options), cv=5, ensemble=False)
            self._calibrated = calibrated.fit(rows, fit.labels)

    def describe(self) -> dict[str, Any]:
        """Returns a description of the classifier for the record."""
        return {"name": "support-vector classifier of pixels"}

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the most probable class of each image, [N]."""
        predicted: np.ndarray = self._svc.predict(flat(np.clip(images, -1.0, 1.0)))
        return predicted

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns class probabilities [N, C] and pairwise decision values [N, C (C - 1) / 2]."""
        if self._calibrated is None:
            raise ValueError("fitted without probabilities")
        rows = flat(np.clip(images, -1.0, 1.0))
        return self._calibrated.predict_proba(rows), self.features(images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the pairwise decision values, [N, C (C - 1) / 2]."""
        decisions: np.ndarray = self._svc.decision_function(flat(np.clip(images, -1.0, 1.0)))
        return decisions

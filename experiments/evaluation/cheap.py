"""A metric that is cheap enough to compute often during training."""

from typing import NamedTuple

import numpy as np

from experiments.errors import UserError
from experiments.evaluation.classes import SvcClassifier
from experiments.evaluation.metrics import with_count
from experiments.evaluation.references import ImageReference, PointsReference
from fdrl_jax.metrics import energy_distance, frechet_distance, random_conv_features

_MAX_POINTS = 5_000  # The distances of all pairs take a second.


class CheapMetric(NamedTuple):
    """A metric: its name, with the number of samples, its value, and the better direction."""

    name: str
    value: float
    lower_is_better: bool


def cheap_metric(reference: PointsReference | ImageReference, samples: np.ndarray) -> CheapMetric:
    """Computes the metric of samples [N, ...] that is logged during training and used for curves.

    For points in the plane, it is the unbiased energy distance to equally many new points. For
    images, it is the Fréchet distance to held-out images: for digits in the space of the
    support-vector classifier, and otherwise in that of fixed random filters. It depends only on the
    samples and the reference.

    Raises:
      UserError: for fewer than two samples or, with images, fewer than two held-out images.
    """
    if len(samples) < 2:
        raise UserError(f"a metric needs at least 2 samples, got --num_samples={len(samples)}")
    if isinstance(reference, PointsReference):
        samples = samples[:_MAX_POINTS]
        value = energy_distance(samples, reference.draw(len(samples), 1))
        return CheapMetric(with_count("energy_distance", len(samples)), value, True)
    if len(reference.images) < 2:
        raise UserError(
            f"data {reference.name!r} has fewer than 2 held-out images to compare with; "
            "set evaluate.every_steps=0"
        )
    if reference.fit is not None and reference.starts is None:
        svc = SvcClassifier(reference.fit, probabilities=False)
        # Equally many samples and references, as in the evaluation: the bias depends on the number.
        samples, space, features = samples[: len(reference.images)], "svc", svc.features
    else:
        space, features = "random_conv", random_conv_features
    value = frechet_distance(features(samples), features(reference.images))
    return CheapMetric(with_count(f"frechet_{space}", len(samples)), value, True)

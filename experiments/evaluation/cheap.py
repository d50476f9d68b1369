"""A metric that is cheap enough to compute often during training."""

import math

import numpy as np

from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation.classes import Classifier, features_of, svc_of
from experiments.evaluation.draws import BUILT_IN
from experiments.evaluation.memorisation import Features
from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import energy_distance, frechet_distance, random_conv_features

_MAX_POINTS = 5_000  # The distances of all pairs take a second.
_MAX_IMAGES = 2_000  # Their features are computed each time.


def num_read(reference: Source | ImageReference, num_samples: int) -> int:
    """Returns how many of this many samples `cheap_metric` reads."""
    if isinstance(reference, Source):
        return min(num_samples, _MAX_POINTS)
    # Equally many samples and references, as in the evaluation: the bias depends on the number.
    return min(num_samples, len(reference.images)) if _has_svc(reference) else num_samples


def _has_svc(reference: ImageReference) -> bool:
    return reference.starts is None and reference.fit_images is not None


def cheap_metric(
    reference: Source | ImageReference, samples: np.ndarray, classifier: Classifier | None = None
) -> Metric:
    """Computes the metric of samples [N, ...] that is logged during training and used for curves.

    For points in the plane, it is the unbiased energy distance to equally many new points. For
    images, it is the Fréchet distance to held-out images: in the features of the classifier if
    there is one, for digits in the decision space of an SVM trained on real digits, and otherwise
    in that of fixed random filters. It depends only on the arguments; lower is better. It is NaN
    unless all samples are finite.

    Raises:
      UserError: for fewer than two samples or, with images, fewer than two held-out images.
    """
    if len(samples) < 2:
        raise UserError(f"a metric needs at least 2 samples, got --num_samples={len(samples)}")
    samples = samples[: num_read(reference, len(samples))]
    if isinstance(reference, Source):
        value = energy_distance(samples, reference.held_out(len(samples), 1))
        return measured("energy_distance", [value], num=len(samples))
    if len(reference.images) < 2:
        raise UserError(
            f"data {reference.name!r} has fewer than 2 held-out images to compare with; a sampler "
            "that was made a run has some if --mode=import had --data_dir"
        )
    space: str = BUILT_IN
    features: Features = random_conv_features
    if classifier is not None:
        space, features = "classifier", features_of(classifier)
    elif _has_svc(reference) and (svc := svc_of(reference)) is not None:
        space, features = "svc", svc.features
    value = math.nan
    if np.isfinite(samples).all():
        value = frechet_distance(features(samples), features(reference.images[:_MAX_IMAGES]))
    return measured("frechet", [value], space=space, num=len(samples))

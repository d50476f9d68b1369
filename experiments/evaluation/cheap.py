"""One number that is cheap enough to be taken again and again during training."""

from typing import NamedTuple

import numpy as np

from experiments.data import Source
from experiments.errors import UserError
from experiments.evaluation.naming import with_count
from fdrl_jax.metrics import energy_distance, frechet_distance, random_conv_features

_MAX_POINTS = 5_000  # Distances of all pairs: a second.
_MAX_REFERENCE_IMAGES = 2_000


class CheapMetric(NamedTuple):
    """A metric's name, with its number of samples, its value, and which direction is better."""

    name: str
    value: float
    lower_is_better: bool


def cheap_metric(source: Source, samples: np.ndarray) -> CheapMetric:
    """Computes the metric that judges samples during training.

    Points in the plane: the unbiased energy distance to as many fresh points. Images: the Fréchet
    distance to held-out ones in the space of fixed random filters. It depends on nothing but the
    samples and the data, so that the same samples give the same number at every step.

    Args:
      source: the data that the samples should resemble.
      samples: on the host, [N, ...]: at least two.

    Raises:
      UserError: for less than two samples, or if there is nothing to compare images with.
    """
    if len(samples) < 2:
        raise UserError(f"a metric needs at least 2 samples, got --num_samples={len(samples)}")
    if source.kind == "points":
        samples = samples[:_MAX_POINTS]
        value = energy_distance(samples, source.held_out(len(samples), 1))
        return CheapMetric(with_count("energy_distance", len(samples)), value, True)
    reference = source.held_out(_MAX_REFERENCE_IMAGES, 0)
    if len(reference) < 2:
        raise UserError(
            f"data {source.name!r} has less than 2 held-out images to compare with; "
            "set evaluate.every_steps=0"
        )
    value = frechet_distance(random_conv_features(samples), random_conv_features(reference))
    return CheapMetric(with_count("frechet_random_conv", len(samples)), value, True)

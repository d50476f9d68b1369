"""Metrics of images of any kind: a first look, without a network that knows images."""

from typing import Any

import numpy as np

from experiments.data import Source
from experiments.evaluation import spaces
from fdrl_jax.metrics import energy_distance, random_conv_features

_MAX_IMAGES = 1_000  # Distances of all pairs.


def metrics(source: Source, samples: np.ndarray, prior: np.ndarray) -> dict[str, Any]:
    """Compares samples, and the prior, with held-out images.

    By the built-in feature space and by energy distances of pixels: 0 for equal distributions. Both
    know little of what an image shows: watch whether samples come nearer than the prior, and judge
    by the pictures, or by an Inception network where there are weights for one.
    """
    num = min(_MAX_IMAGES, len(samples))
    held_out = source.held_out(num, 0)
    if len(held_out) < 2:  # Of a very small set: there is no distance to a single image.
        return {"num_samples": num}
    by_filters = (spaces.BUILT_IN, random_conv_features)
    of_prior = spaces.judge(*by_filters, prior[:num], held_out)
    return {
        **spaces.judge(*by_filters, samples[:num], held_out),
        **{f"{name}_of_prior": v for name, v in of_prior.items() if name.startswith("frechet")},
        "pixel_energy_distance": energy_distance(samples[:num], held_out),
        "pixel_energy_distance_of_prior": energy_distance(prior[:num], held_out),
        "num_samples": num,
    }

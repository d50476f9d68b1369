"""Metrics of images of any kind: a first look, without a network that knows images."""

from typing import Any

import numpy as np

from experiments.data import Source
from fdrl_jax.metrics import energy_distance

_MAX_IMAGES = 1_000  # Distances of all pairs.


def metrics(source: Source, samples: np.ndarray, prior: np.ndarray) -> dict[str, Any]:
    """Computes energy distances of pixels to held-out images, of the samples and of the prior.

    0 for equal distributions. Pixels know little of what an image shows: watch whether samples
    come nearer than the prior, and judge by the pictures.
    """
    num = min(_MAX_IMAGES, len(samples))
    held_out = source.held_out(num, 0)
    if len(held_out) < 2:  # Of a very small set: there is no distance to a single image.
        return {"num_samples": num}
    return {
        "pixel_energy_distance": energy_distance(samples[:num], held_out),
        "pixel_energy_distance_of_prior": energy_distance(prior[:num], held_out),
        "num_samples": num,
    }

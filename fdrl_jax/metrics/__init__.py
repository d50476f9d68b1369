"""Distances between samples and data, on the host: they judge, they do not train."""

from fdrl_jax.metrics.energy import energy_distance
from fdrl_jax.metrics.features import random_conv_features
from fdrl_jax.metrics.frechet import frechet_distance
from fdrl_jax.metrics.modes import ModeCoverage, mode_coverage

__all__ = [
    "ModeCoverage",
    "energy_distance",
    "frechet_distance",
    "mode_coverage",
    "random_conv_features",
]

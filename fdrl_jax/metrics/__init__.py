"""Distances between samples and data, for evaluation and not for training."""

from fdrl_jax.metrics.energy import EnergyRatio, energy_distance, energy_ratio, mean_distance
from fdrl_jax.metrics.features import random_conv_features
from fdrl_jax.metrics.frechet import frechet_distance
from fdrl_jax.metrics.log_ratio import entropy, kl_to_density, log_ratio_kl
from fdrl_jax.metrics.manifold import ManifoldMetrics, manifold_metrics
from fdrl_jax.metrics.modes import ModeCoverage, mode_coverage
from fdrl_jax.metrics.transport import sinkhorn_divergence, sliced_wasserstein

__all__ = [
    "EnergyRatio",
    "ManifoldMetrics",
    "ModeCoverage",
    "energy_distance",
    "energy_ratio",
    "entropy",
    "frechet_distance",
    "kl_to_density",
    "log_ratio_kl",
    "manifold_metrics",
    "mean_distance",
    "mode_coverage",
    "random_conv_features",
    "sinkhorn_divergence",
    "sliced_wasserstein",
]

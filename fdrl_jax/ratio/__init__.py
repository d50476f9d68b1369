"""Density ratios of two data sets: `r = numerator / denominator`, from samples of both.

    ratio = fdrl.fit_ratio(key, numerator, denominator)
    ratio.log_ratio(x)

If no classifier can tell the two sets apart gradually, a bridge of intermediate sets connects them,
and the logarithms of the ratios of adjacent sets add up.

References: Sugiyama, Suzuki and Kanamori, "Density Ratio Estimation in Machine Learning", 2012;
Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

from fdrl_jax.ratio.density import LogDensity, log_density
from fdrl_jax.ratio.fitting import fit_ratio
from fdrl_jax.ratio.information import MutualInformation, importance_weights, mutual_information
from fdrl_jax.ratio.network import Network, Quadratic, Trunk
from fdrl_jax.ratio.result import Check, DensityRatio, Estimate

__all__ = [
    "Check",
    "DensityRatio",
    "Estimate",
    "LogDensity",
    "MutualInformation",
    "Network",
    "Quadratic",
    "Trunk",
    "fit_ratio",
    "importance_weights",
    "log_density",
    "mutual_information",
]

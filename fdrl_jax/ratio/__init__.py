"""Density ratios of two data sets: `r = numerator / denominator`, from samples of both.

    ratio = fdrl.fit_ratio(key, numerator, denominator)
    ratio.log_ratio(x)

References: Sugiyama, Suzuki and Kanamori, "Density Ratio Estimation in Machine Learning", 2012;
Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

from fdrl_jax.networks.layers import Trunk
from fdrl_jax.ratio.fit import MutualInformation, fit_ratio, mutual_information
from fdrl_jax.ratio.result import Check, DensityRatio, Estimate
from fdrl_jax.ratio.training import Network, Options

__all__ = ["Check", "DensityRatio", "Estimate", "MutualInformation", "Network", "Options", "Trunk"]
__all__ += ["fit_ratio", "mutual_information"]
__dir__ = __all__.copy

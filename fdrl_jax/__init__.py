"""fdrl_jax: Flow-Guided Density Ratio Learning as pure, jittable JAX functions.

Reference: Heng, Ansari and Soh, "Generative Modeling with Flow-Guided Density Ratio Learning",
ECML/PKDD 2024, arXiv 2303.03714.

Throughout this package the density ratio is flowed samples over data, `r = q~/p`. It is large where
there are too many samples and small where there are too few.
"""

from fdrl_jax import (
    bregman,
    compose,
    divergences,
    interpolation,
    langevin,
    method,
    metrics,
    networks,
    priors,
    ratio,
    refinement,
    training,
)
from fdrl_jax.divergences import first_variation
from fdrl_jax.langevin import TwoStage, drift, flow, langevin_step, noise_scale, two_stage
from fdrl_jax.method import FDRL, objective
from fdrl_jax.pretrained import Sampler, pretrained
from fdrl_jax.ratio import fit_ratio, log_density, mutual_information
from fdrl_jax.refinement import accept, acceptance_bound, refine

__version__ = "0.2.0"

__all__ = [
    "FDRL",
    "Sampler",
    "TwoStage",
    "__version__",
    "accept",
    "acceptance_bound",
    "bregman",
    "compose",
    "divergences",
    "drift",
    "first_variation",
    "fit_ratio",
    "flow",
    "interpolation",
    "langevin",
    "langevin_step",
    "log_density",
    "method",
    "metrics",
    "mutual_information",
    "networks",
    "noise_scale",
    "objective",
    "pretrained",
    "priors",
    "ratio",
    "refine",
    "refinement",
    "training",
    "two_stage",
]

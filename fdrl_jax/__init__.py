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
    refinement,
    training,
)
from fdrl_jax.divergences import first_variation
from fdrl_jax.langevin import TwoStage, drift, flow, langevin_step, noise_scale, two_stage
from fdrl_jax.method import FDRL, objective
from fdrl_jax.refinement import refine

__version__ = "0.2.0"

__all__ = [
    "FDRL",
    "TwoStage",
    "__version__",
    "bregman",
    "compose",
    "divergences",
    "drift",
    "first_variation",
    "flow",
    "interpolation",
    "langevin",
    "langevin_step",
    "method",
    "metrics",
    "networks",
    "noise_scale",
    "objective",
    "priors",
    "refine",
    "refinement",
    "training",
    "two_stage",
]

"""fdrl_jax: Flow-Guided Density Ratio Learning as pure, jittable JAX functions.

Reference: Heng, Ansari and Soh, "Generative Modeling with Flow-Guided Density Ratio Learning",
ECML/PKDD 2024, arXiv 2303.03714.

Throughout this package the density ratio is samples over data, `r = q~/p`. It is large where there
are too many samples and small where there are too few.
"""

from fdrl_jax import metrics, networks, priors, training
from fdrl_jax.compose import condition
from fdrl_jax.divergences import first_variation
from fdrl_jax.fit import fit
from fdrl_jax.langevin import drift, flow
from fdrl_jax.method import FDRL
from fdrl_jax.pretrained import Sampler, pretrained
from fdrl_jax.ratio import DensityRatio, fit_ratio, mutual_information
from fdrl_jax.refinement import refine

__version__ = "0.2.0"

__all__ = [
    "FDRL",
    "DensityRatio",
    "Sampler",
    "condition",
    "drift",
    "first_variation",
    "fit",
    "fit_ratio",
    "flow",
    "metrics",
    "mutual_information",
    "networks",
    "pretrained",
    "priors",
    "refine",
    "training",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""fdrl_jax: Flow-Guided Density Ratio Learning as pure, jittable JAX functions.

Reference: Heng, Ansari and Soh, "Generative Modeling with Flow-Guided Density Ratio Learning",
ECML/PKDD 2024, arXiv 2303.03714.
"""

from fdrl_jax import (
    adversarial,
    bregman,
    compose,
    divergences,
    interpolation,
    metrics,
    networks,
    parallel,
    priors,
    problem,
    rng,
    samplers,
    state,
    steps,
)
from fdrl_jax.divergences import first_variation
from fdrl_jax.flow import (
    TwoStage,
    drift,
    flow,
    flow_with_speed,
    langevin_step,
    noise_scale,
    two_stage,
)

__version__ = "0.1.0"

__all__ = [
    "TwoStage",
    "__version__",
    "adversarial",
    "bregman",
    "compose",
    "divergences",
    "drift",
    "first_variation",
    "flow",
    "flow_with_speed",
    "interpolation",
    "langevin_step",
    "metrics",
    "networks",
    "noise_scale",
    "parallel",
    "priors",
    "problem",
    "rng",
    "samplers",
    "state",
    "steps",
    "two_stage",
]

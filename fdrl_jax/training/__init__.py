"""The packaged training: state, step, samplers, random numbers by position, many devices."""

from fdrl_jax.training import (
    adversarial,
    augmentation,
    parallel,
    problem,
    rng,
    samplers,
    state,
    steps,
)

__all__ = [
    "adversarial",
    "augmentation",
    "parallel",
    "problem",
    "rng",
    "samplers",
    "state",
    "steps",
]

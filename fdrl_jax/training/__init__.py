"""The packaged training: problem, step, state, samplers, random numbers by position, devices."""

from fdrl_jax.training import parallel, problem, rng, samplers, state, steps

__all__ = ["parallel", "problem", "rng", "samplers", "state", "steps"]
__dir__ = __all__.copy

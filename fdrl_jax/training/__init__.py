"""The packaged training: problem, step, state, samplers, random numbers by position, devices."""

from fdrl_jax.training import parallel, problem, rng, samplers, state, steps

__all__ = ["parallel", "problem", "rng", "samplers", "state", "steps"]


def __dir__() -> list[str]:
    return __all__

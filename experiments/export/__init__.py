"""A trained sampler as a folder that needs JAX and nothing of this program."""

from experiments.export.artefact import LIFETIME, PLATFORMS, write

__all__ = ["LIFETIME", "PLATFORMS", "write"]

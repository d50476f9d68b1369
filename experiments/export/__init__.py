"""Exports a trained sampler to a folder that needs only JAX, not this program."""

from experiments.export.artefact import LIFETIME, PLATFORMS, write

__all__ = ["LIFETIME", "PLATFORMS", "write"]

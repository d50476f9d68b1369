"""Data sources: one interface, chosen by name in the config."""

from experiments.data.options import DataOptions
from experiments.data.registry import load
from experiments.data.source import Source

__all__ = ["DataOptions", "Source", "load"]

"""Data sets: one interface, `Source`, for built-in points and digits and for the user's images."""

from experiments.data.source import Labels, Source, Starts, Take, describe_shape, spread

__all__ = ["Labels", "Source", "Starts", "Take", "describe_shape", "spread"]

"""Data sources: one interface, chosen by name in the config."""

from experiments.data.decode import to_uint8, to_unit
from experiments.data.digits import digits
from experiments.data.records import digest
from experiments.data.registry import BUILT_IN, load, load_if_given, resolve_dir
from experiments.data.source import DataOptions, Labels, Source, Starts, describe_shape
from experiments.data.stream import Take

__all__ = [
    "BUILT_IN",
    "DataOptions",
    "Labels",
    "Source",
    "Starts",
    "Take",
    "describe_shape",
    "digest",
    "digits",
    "load",
    "load_if_given",
    "resolve_dir",
    "to_uint8",
    "to_unit",
]

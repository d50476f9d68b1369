"""Data sources: one interface, chosen by name in the config."""

from experiments.data.decode import to_uint8, to_unit
from experiments.data.digits import digits
from experiments.data.records import digest
from experiments.data.registry import is_built_in, load, load_if_given, resolve_dir
from experiments.data.source import DataOptions, Density, Labels, Source, Starts, describe_shape
from experiments.data.stream import Take
from experiments.files import read_arrays, read_headers

__all__ = [
    "DataOptions",
    "Density",
    "Labels",
    "Source",
    "Starts",
    "Take",
    "describe_shape",
    "digest",
    "digits",
    "is_built_in",
    "load",
    "load_if_given",
    "read_arrays",
    "read_headers",
    "resolve_dir",
    "to_uint8",
    "to_unit",
]

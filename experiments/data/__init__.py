"""Data sets by name: built-in points and digits, and the user's images."""

from pathlib import Path

from experiments.data.built_in import BUILT_IN, digits
from experiments.data.source import Source
from experiments.errors import DataError, UserError
from experiments.settings import Data
from fdrl_jax._checks import nearest

__all__ = ["BUILT_IN", "Source", "contains", "load"]

# The user's images; "tfds:NAME" is a data set of tensorflow-datasets.
_STORED = ("folder", "npz", "pair")


def load(options: Data) -> Source:
    """Opens a data set; a DataError says what is missing, unreadable or not supported."""
    name = options.name
    if name == "digits":
        return digits(options.source_class, options.target_class)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name not in _STORED and not (name.startswith("tfds:") and name != "tfds:"):
        names = (*BUILT_IN, *_STORED, "tfds:NAME")
        found = f"got {name!r}{nearest(name, names)}"
        raise DataError(f"data.name must be one of {', '.join(names)}, {found}")
    # Here, because built-in data need neither Grain nor Pillow.
    from experiments.data.formats import printable
    from experiments.data.stored import stored_source

    try:
        return stored_source(options)
    except (UserError, OSError) as error:  # Paths may have characters that cannot be printed.
        raise DataError(printable(str(error))) from error


def contains(options: Data, path: Path) -> bool:
    """Whether a path is in a folder of images, where the next reading would find it."""
    if options.name not in ("folder", "pair") or not options.dir:
        return False
    return path.resolve().is_relative_to(Path(options.dir).resolve())

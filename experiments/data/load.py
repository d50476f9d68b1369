"""The data sets by name."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from experiments.data.digits import digits
from experiments.data.formats import printable
from experiments.data.points import POINTS
from experiments.data.source import Source
from experiments.data.tfds import PREFIX
from experiments.errors import DataError, UserError
from experiments.settings import Data
from fdrl_jax._names import nearest

# Data sets that need no files.
BUILT_IN: dict[str, Callable[[], Source]] = {**POINTS, "digits": digits}
# The user's images; "tfds:NAME" is a set of tensorflow-datasets.
_STORED = ("folder", "npz", "pair")
# Settings of stored images, which have no effect on a built-in set.
_OF_STORED_IMAGES = (
    "source_dir",
    "split",
    "held_out_split",
    "num_held_out",
    "center_crop",
    "resize",
    "keep_aspect",
    "random_flip",
)


def load(options: Data) -> Source:
    """Opens a data set; a DataError says what is missing, unreadable or not supported."""
    if options.name in BUILT_IN:
        return _built_in(options)
    if options.name not in _STORED and options.name.removeprefix(PREFIX) in ("", options.name):
        names = (*BUILT_IN, *_STORED, f"{PREFIX}NAME")
        raise DataError(
            f"data.name must be one of {', '.join(names)}, got {options.name!r}"
            f"{nearest(options.name, names)}"
        )
    # Here, because built-in data need neither Grain nor Pillow.
    from experiments.data.stored import stored_source

    where = resolve_dir(options.dir)
    try:
        return stored_source(dataclasses.replace(options, dir=where))
    except (UserError, OSError) as error:  # Paths may have characters that cannot be printed.
        raise DataError(printable(str(error))) from error


def resolve_dir(dir: str) -> str:
    """Returns where the data are: `data.dir`, or the environment variable FDRL_DATA_DIR.

    The variable is read whenever data are opened and never stored, as it differs between machines.
    """
    return os.path.expanduser(dir or os.environ.get("FDRL_DATA_DIR", ""))


def contains(options: Data, path: Path) -> bool:
    """Whether a path is in a folder of images, whose next reading would find what is there."""
    where = resolve_dir(options.dir) if options.name in ("folder", "pair") else ""
    folders = [Path(folder).resolve() for folder in (where, options.source_dir) if folder]
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _built_in(options: Data) -> Source:
    classes = (options.source_class, options.target_class)
    if options.name == "digits":
        source = digits(*classes)
    elif any(classes):
        raise DataError(
            f"data.source_class and data.target_class: data.name={options.name} has no classes"
        )
    else:
        source = BUILT_IN[options.name]()
    usual = Data()
    changed = [key for key in _OF_STORED_IMAGES if getattr(options, key) != getattr(usual, key)]
    if options.image_size not in (0, *source.event_shape[:-1]):  # Points have no size.
        changed.append("image_size")
    if changed:
        keys = ", ".join(f"data.{key}={getattr(options, key)}" for key in changed)
        raise DataError(
            f"{keys}: data.name={options.name} is a built-in set, which is used as it is; remove "
            "the setting"
        )
    return source

"""The data sources, by name."""

import os
from collections.abc import Callable

from experiments.data import tfds
from experiments.data.digits import digits
from experiments.data.records import printable
from experiments.data.source import DataOptions, Source
from experiments.data.stored import absent_source, stored_source
from experiments.data.toy import gaussians8, gaussians25, swissroll
from experiments.errors import DataError

# Data sets that need no files.
BUILT_IN: dict[str, Callable[[], Source]] = {
    "swissroll": swissroll,
    "8gaussians": gaussians8,
    "25gaussians": gaussians25,
    "digits": digits,
}
# The user's images; "tfds:NAME" is a prepared set of tensorflow-datasets.
STORED = ("folder", "lsun", "npz", "pair")
# Settings of stored images, which have no effect on a built-in set.
_OF_STORED_IMAGES = (
    "split",
    "held_out_split",
    "num_held_out",
    "center_crop",
    "resize",
    "keep_aspect",
    "random_flip",
)
NAMES = (*BUILT_IN, *STORED, "tfds:NAME")  # Allowed values of data.name.


def is_known(name: object) -> bool:
    """Whether `load` accepts this name."""
    return isinstance(name, str) and (
        name in BUILT_IN or name in STORED or (name.startswith(tfds.PREFIX) and name != tfds.PREFIX)
    )


def resolve_dir(dir: str) -> str:
    """Returns where the data are: `data.dir`, or the environment variable FDRL_DATA_DIR.

    The variable is read whenever data are opened and never stored, as it differs between machines.
    """
    return os.path.expanduser(dir or os.environ.get("FDRL_DATA_DIR", ""))


def load(options: DataOptions, *, blank: bool = False) -> Source:
    """Opens a data source, whose name `is_known`.

    With `blank`, black pixels may replace those of images that would be decoded now. This suffices
    to compile and to time.

    Raises:
      DataError: for data that are missing or cannot be read, and for settings that a built-in data
        set does not support.
    """
    if options.name in BUILT_IN:
        return _built_in(options)
    where = resolve_dir(options.dir)
    if "\0" in where:  # Versions of Python raise different errors for it, in different places.
        raise DataError(printable(f"data.dir={where}: a path cannot contain a NUL character"))
    try:
        return stored_source(options._replace(dir=where), blank=blank)
    except OSError as error:
        raise DataError(printable(f"data.dir={where}: {error.strerror or error}")) from error
    except DataError as error:  # Paths may contain characters that a terminal cannot show.
        raise DataError(printable(str(error))) from error


def load_if_given(options: DataOptions) -> tuple[Source, bool]:
    """Opens a data source for a plan, which needs the shapes only.

    Returns it, and whether its data are there: those of a built-in set, or where the options or
    FDRL_DATA_DIR say, or below the default root of TFDS. Other stored sets are absent.

    Raises:
      DataError: as `load`, and for an absent set whose images could have any size.
    """
    is_given = options.name in BUILT_IN or resolve_dir(options.dir)
    if is_given or tfds.is_prepared(options.name):
        return load(options, blank=True), True
    return absent_source(options), False


def _built_in(options: DataOptions) -> Source:
    classes = (options.source_class, options.target_class)
    if options.name == "digits":
        source = digits(*classes)
    elif any(classes):
        raise DataError(
            f"data.source_class and data.target_class: data.name={options.name} has no classes"
        )
    else:
        source = BUILT_IN[options.name]()
    usual = DataOptions(options.name)
    changed = [key for key in _OF_STORED_IMAGES if getattr(options, key) != getattr(usual, key)]
    if options.image_size not in (0, *source.event_shape[:-1]):  # Points have no size.
        changed.append("image_size")
    if changed:
        size = " x ".join(map(str, source.event_shape[:2]))
        what = "points" if source.kind == "points" else f"images of {size} pixels"
        keys = ", ".join(f"data.{key}={getattr(options, key)}" for key in changed)
        raise DataError(
            f"{keys}: data.name={options.name} is a built-in set of {what} that are not cropped, "
            "resized, mirrored or split differently. Remove the setting, or choose other data"
        )
    return source

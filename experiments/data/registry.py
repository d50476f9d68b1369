"""The data sources, by name."""

from collections.abc import Callable

from experiments.data import tfds
from experiments.data.digits import digits
from experiments.data.images import image_source
from experiments.data.options import DataOptions
from experiments.data.source import Source
from experiments.data.toy2d import gaussians8, gaussians25, swissroll
from experiments.errors import DataError
from fdrl_jax.names import nearest

BUILT_IN: dict[str, Callable[[], Source]] = {
    "swissroll": swissroll,
    "8gaussians": gaussians8,
    "25gaussians": gaussians25,
    "digits": digits,
}
# Images of the user's own; "tfds:NAME" names a prepared set of tensorflow-datasets.
STORED = ("folder", "lsun", "npz", "pair")


def objection(name: object) -> str | None:
    """Returns what a name of data must be, or `None` for one that fits."""
    if isinstance(name, str) and (
        name in BUILT_IN or name in STORED or (name.startswith(tfds.PREFIX) and name != tfds.PREFIX)
    ):
        return None
    allowed = [*BUILT_IN, *STORED, "tfds:NAME"]
    return f"one of {', '.join(allowed)}{nearest(str(name), allowed)}"


def load(options: DataOptions) -> Source:
    """Opens a data source, whose name `objection` has passed.

    Raises:
      DataError: for data that are missing or cannot be read.
    """
    if options.name == "digits":
        return digits(options.source_class, options.target_class)
    built_in = BUILT_IN.get(options.name)
    if built_in is not None:
        return built_in()
    try:
        return image_source(options)
    except OSError as error:
        raise DataError(f"data.dir={options.dir}: {error.strerror or error}") from error

"""The data sources that are built in, by name."""

from collections.abc import Callable

from experiments.data.digits import digits
from experiments.data.source import Source
from experiments.data.toy2d import gaussians8, gaussians25, swissroll

BUILT_IN: dict[str, Callable[[], Source]] = {
    "swissroll": swissroll,
    "8gaussians": gaussians8,
    "25gaussians": gaussians25,
    "digits": digits,
}


def load(name: str) -> Source:
    """Loads a data source by name; `schema` has checked the name."""
    return BUILT_IN[name]()

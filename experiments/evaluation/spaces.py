"""Feature spaces by name: functions from images to features."""

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from experiments.errors import UserError
from fdrl_jax._names import nearest
from fdrl_jax.metrics import frechet_distance, manifold_metrics, random_conv_features

# `images [N, H, W, C] float32 in [-1, 1] -> features [N, D] or [N, ...]`.
Features = Callable[[np.ndarray], np.ndarray]
BUILT_IN, PIXELS = "random_conv", "pixels"
FEWEST_FOR_NEIGHBOURS = 6  # Images; density and coverage need the fifth neighbour of each.


def named(names: Sequence[str]) -> dict[str, Features]:
    """Finds feature spaces: "random_conv", or MODULE:FUNCTION to import.

    Returns the functions by their names in names of metrics.

    Raises:
      UserError: for an unknown name, a module or function that does not exist, two spaces of one
        name, or one with the name of the space of pixels.
    """
    found: dict[str, Features] = {}
    for name, function in map(_get, names):
        if name in found or name == PIXELS:
            raise UserError(
                f"there are two feature spaces {name!r}, whose metrics would have the same names; "
                "rename a function"
            )
        found[name] = function
    return found


def scores(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Computes the Fréchet distance and, if there are enough images, manifold metrics.

    Both are features: `rows` [N, D] and those of real images, [M, D].
    """
    found = {"frechet": frechet_distance(rows, reference)}
    if min(len(rows), len(reference)) >= FEWEST_FOR_NEIGHBOURS:
        found |= manifold_metrics(rows, reference)._asdict()
    return found


def _get(name: str) -> tuple[str, Features]:
    if name == BUILT_IN:
        return name, random_conv_features
    module, _, function = name.partition(":")
    if not function:
        hint = nearest(name, (BUILT_IN,)) or "."
        raise UserError(
            f"unknown feature space {name!r}{hint} Allowed: {BUILT_IN}, or MODULE:FUNCTION for "
            "your own function"
        )
    try:
        return function, getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"feature space {name!r} cannot be imported: {error}") from error

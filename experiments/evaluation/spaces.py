"""Feature spaces that anyone may add: a function from images to numbers, by name.

Fréchet distances, precision, recall, density and coverage are then taken there. From a program:
`spaces.register("mine", features)`; on the command line: `--features=MODULE:FUNCTION`.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.errors import UserError
from experiments.evaluation.naming import with_count
from fdrl_jax.metrics import frechet_distance, manifold_metrics, random_conv_features
from fdrl_jax.names import nearest

# Images in [-1, 1], [N, H, W, C] float32, to features, [N, D] or [N, ...].
Features = Callable[[np.ndarray], np.ndarray]
BUILT_IN = "random_conv"
_REGISTRY: dict[str, Features] = {BUILT_IN: random_conv_features}
_FEWEST_FOR_NEIGHBOURS = 6


def register(name: str, features: Features) -> None:
    """Adds a feature space.

    Args:
      name: becomes part of the metrics' names.
      features: `images in [-1, 1] [N, H, W, C] -> features [N, ...]`, the same at every call.

    Raises:
      ValueError: for a name that is taken.
    """
    if name in _REGISTRY:
        raise ValueError(f"feature space {name!r} exists already; there are {', '.join(_REGISTRY)}")
    _REGISTRY[name] = features


def get(name: str) -> tuple[str, Features]:
    """Finds a feature space.

    Args:
      name: of a registered one, or MODULE:FUNCTION, which is imported.

    Returns:
      What its metrics are called by, and the function.

    Raises:
      UserError: for an unknown name, or a module or function that is not there.
    """
    if name in _REGISTRY:
        return name, _REGISTRY[name]
    module, _, function = name.partition(":")
    if not function:
        hint = nearest(name, _REGISTRY) or "."
        raise UserError(
            f"unknown feature space {name!r}{hint} There are {', '.join(_REGISTRY)}, and "
            "MODULE:FUNCTION for one of your own"
        )
    try:
        return function, getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"feature space {name!r} cannot be imported: {error}") from error


def from_flax(
    module: Any, variables: Any, *, method: Any = None, batch_size: int = 256
) -> Features:
    """Makes a feature space of a Flax module.

    Args:
      module: a `flax.linen` module that takes images [B, H, W, C].
      variables: of the module.
      method: of the module, for features of an inner layer; `__call__` if left out.
      batch_size: images at a time.
    """

    @jax.jit
    def features(images: jax.Array) -> jax.Array:
        def of_image(image: jax.Array) -> jax.Array:
            return jnp.asarray(module.apply(variables, image[None], method=method)[0])

        found: jax.Array = lax.map(of_image, images, batch_size=batch_size)
        return found

    return lambda images: np.asarray(features(images))


def judge(name: str, features: Features, samples: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """Computes metrics of samples in a feature space.

    Args:
      name: of the space.
      features: of the space.
      samples: images in [-1, 1], [N, H, W, C].
      data: real ones, [M, H, W, C].

    Returns:
      `frechet_NAME_N` and, for more than a handful of images, precision, recall, density and
      coverage in the same way.
    """
    ours, real = features(samples), features(data)
    found = {"frechet": frechet_distance(ours, real)}
    if min(len(ours), len(real)) >= _FEWEST_FOR_NEIGHBOURS:
        found |= manifold_metrics(ours, real)._asdict()
    return {with_count(f"{metric}_{name}", len(samples)): v for metric, v in found.items()}

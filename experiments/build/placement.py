"""Where the constants of a run are: copied to each device, or distributed over all of them.

Data on the device are at most `data.in_memory_megabytes`, and each device has its own copy. The
full factor of the prior takes 604 MB at 64 x 64 x 3 and 9.7 GB at 128 x 128 x 3, so its rows are
distributed: each device stores and reads only its part of them.
"""

import math
from typing import Any

import jax

from fdrl_jax.training import parallel
from fdrl_jax.training.problem import Constants

# A smaller factor is read in less time than the two exchanges between devices take.
MIN_DISTRIBUTED_BYTES = 256 * 2**20


def on_devices(constants: Constants) -> Constants:
    """Returns the constants for a function that `parallel` maps."""
    if not _is_distributed(constants, parallel.num_replicas()):
        return parallel.replicate(constants)
    factor = parallel.distribute(constants.prior["factor"])
    rest = parallel.replicate(_with_factor(constants, None))
    return _with_factor(rest, factor)


def shapes_on_device(constants: Constants, num_replicas: int) -> Constants:
    """Returns the shapes and dtypes of the constants on one device."""
    shapes: Constants = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), constants)
    if not _is_distributed(constants, num_replicas):
        return shapes
    whole = shapes.prior["factor"]
    rows = (whole.shape[0] // num_replicas, *whole.shape[1:])
    return _with_factor(shapes, jax.ShapeDtypeStruct(rows, whole.dtype))


def _is_distributed(constants: Constants, num_replicas: int) -> bool:
    if not isinstance(constants.prior, dict) or num_replicas == 1:
        return False
    factor = constants.prior["factor"]
    is_large = math.prod(factor.shape) * factor.dtype.itemsize >= MIN_DISTRIBUTED_BYTES
    return is_large and factor.shape[0] % num_replicas == 0


def _with_factor(constants: Constants, factor: Any) -> Constants:
    return constants._replace(prior={**constants.prior, "factor": factor})

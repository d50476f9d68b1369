"""Coverage of the modes of a mixture."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from experiments.evaluation.rows import flat


class ModeCoverage(NamedTuple):
    """How well samples cover the modes of a mixture.

    Attributes:
      num_hit: number of modes with at least one sample.
      num_modes: number of modes of the mixture.
      high_quality: share of samples within the radius of a mode, 0 to 1.
      counts: number of samples per mode, [M]. A sample counts for its nearest mode if it is within
        the radius.
    """

    num_hit: int
    num_modes: int
    high_quality: float
    counts: np.ndarray


def mode_coverage(samples: np.ndarray, modes: np.ndarray, radius: float) -> ModeCoverage:
    """Counts the modes that have samples, and the share of samples near a mode.

    Args:
      samples: points, [N, D].
      modes: centres, [M, D].
      radius: distance within which a sample belongs to its nearest mode: usually 4 standard
        deviations of a mode.

    Returns:
      The counts and the share.

    Raises:
      ValueError: for different numbers of features.
    """
    distances = cdist(flat(samples), flat(modes))
    near = distances.min(axis=1) <= radius
    counts = np.bincount(distances.argmin(axis=1)[near], minlength=len(modes))
    return ModeCoverage(int(np.sum(counts > 0)), len(modes), float(near.mean()), counts)

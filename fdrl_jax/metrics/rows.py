"""Examples of any shape as rows of numbers."""

import numpy as np


def flat(x: np.ndarray) -> np.ndarray:
    """Returns examples as rows, [N, D] float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def pair(x: np.ndarray, y: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two samples as rows, less the mean of the second one.

    Distances between centred points have smaller rounding errors.

    Args:
      x: a sample, [N, ...].
      y: another sample, [M, ...].
      least: the smallest number of points of a sample.

    Raises:
      ValueError: for fewer points, or points with different numbers of features.
    """
    x, y = flat(x), flat(y)
    if min(len(x), len(y)) < least or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"both samples must have at least {least} points and the same number of features, "
            f"got {x.shape} and {y.shape}"
        )
    centre = y.mean(axis=0)
    return x - centre, y - centre

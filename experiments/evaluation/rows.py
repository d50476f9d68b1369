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
      ValueError: for fewer points, or points of different shapes.
    """
    shapes = np.shape(x), np.shape(y)
    # Before they are flattened: [N, 2, 3] and [M, 3, 2] have equally many features.
    if min(len(x), len(y)) < least or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"both samples must have at least {least} points and the same features, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    x, y = flat(x), flat(y)
    centre = y.mean(axis=0)
    return x - centre, y - centre

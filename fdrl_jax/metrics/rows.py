"""Examples of any shape as rows of numbers."""

import numpy as np


def flat(x: np.ndarray) -> np.ndarray:
    """Returns examples as rows, [N, D] float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)

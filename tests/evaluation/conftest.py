"""Images for the tests of the evaluation."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def stripes():
    """Returns `(num, seed, size=16) -> smooth random colour images, uint8 [num, size, size, 3]`."""

    def make(num: int, seed: int, size: int = 16) -> np.ndarray:
        rng = np.random.default_rng(seed)
        axis = np.linspace(0.0, 2.0 * np.pi, size)
        angle, phase = rng.uniform(0, np.pi, (2, num, 1, 1, 3))
        along = np.cos(angle) * axis[:, None, None] + np.sin(angle) * axis[None, :, None]
        waves = np.sin(2.0 * along + phase) * rng.uniform(0.3, 1.0, (num, 1, 1, 3))
        return np.round(127.5 * (waves + 1.0)).astype(np.uint8)

    return make

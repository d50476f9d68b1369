"""The stages of samples."""

from typing import NamedTuple

import numpy as np


class Samples(NamedTuple):
    """Samples on the host, [N, ...]: of the prior `x_0`, bridged `x_K` and refined `x_{K+κ}`."""

    prior: np.ndarray
    bridged: np.ndarray
    refined: np.ndarray

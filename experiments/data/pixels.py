"""Between the pixels that networks see, in [-1, 1], and those of files, uint8."""

from typing import Any

import numpy as np


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to the grey levels 0 .. 255, clipping what lies outside."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def to_unit(grey_levels: Any) -> Any:
    """Maps the grey levels 0 .. 255 to [-1, 1], float32; numpy or JAX."""
    return grey_levels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)

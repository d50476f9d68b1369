"""Between the pixels that networks see, in [-1, 1], and those of files, uint8."""

import numpy as np


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to the grey levels 0 .. 255, clipping what lies outside."""
    return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(grey_levels: np.ndarray) -> np.ndarray:
    """Maps the grey levels 0 .. 255 to [-1, 1]."""
    return (grey_levels / 127.5 - 1.0).astype(np.float32)

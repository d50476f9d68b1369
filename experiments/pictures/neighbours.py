"""The picture of memorisation: samples next to their nearest training images."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.pictures.images import show, tile
from experiments.pictures.style import panels

_GAP = 0.35  # White space between a sample and its neighbours, in image widths.


def neighbours(samples: np.ndarray, nearest: Mapping[str, np.ndarray]) -> Figure:
    """Draws rows of a sample and its nearest training images, nearest first (fig. 10).

    Args:
      samples: images in [-1, 1], [Q, H, W, C].
      nearest: training images by the name of the feature space, [Q, k, H, W, C].
    """
    figure, axes = panels(len(nearest), size=4.2)
    for ax, (space, images) in zip(axes, nearest.items(), strict=True):
        sheet = tile(images.reshape(-1, *images.shape[2:]), images.shape[1])
        left = tile(samples[: len(images)], 1)
        gap = np.full((len(sheet), max(1, round(_GAP * samples.shape[2])), sheet.shape[2]), 255)
        show(ax, np.concatenate([left, gap.astype(np.uint8), sheet], axis=1))
        ax.set_title(f"sample | nearest in the training set, by {space.replace('_', ' ')}")
    return figure

"""Pictures of a run: every function draws one figure. Here what goes with which kind of data."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.data import Source
from experiments.pictures import images, points
from experiments.pictures.style import save
from experiments.sampling import Samples

__all__ = ["as_stored", "course", "prior_and_data", "samples_and_data", "save"]

Snapshots = Sequence[tuple[int, np.ndarray]]
_SHOWN_DATA = 4_000


def samples_and_data(source: Source, samples: Samples) -> Figure:
    """Draws the prior, the refined samples and held-out data side by side."""
    draw = points.samples_and_data if source.kind == "points" else images.samples_and_data
    return draw(samples.prior, samples.refined, source.held_out(_SHOWN_DATA, 1))


def prior_and_data(source: Source, prior: np.ndarray) -> Figure:
    """Draws the prior and held-out data side by side (fig. 3)."""
    draw = points.prior_and_data if source.kind == "points" else images.prior_and_data
    return draw(prior, source.held_out(len(prior), 1))


def course(source: Source, snapshots: Snapshots) -> Figure:
    """Draws samples at several steps of training (fig. 4)."""
    if source.kind == "points":
        return points.course(snapshots, source.held_out(_SHOWN_DATA, 1))
    return images.course(snapshots)


def as_stored(source: Source, samples: np.ndarray) -> np.ndarray:
    """Returns samples as they are written to files: points as they are, images as uint8."""
    return samples if source.kind == "points" else images.to_uint8(samples)

"""Several draws of equal size from held-out images, samples and the prior.

A single value of a metric hides its variation. Each metric is therefore computed several times,
each time with other references, samples and real images, and reported as the mean and standard
deviation over these draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.evaluation.metrics import Metric, estimate, measured
from experiments.evaluation.references import ImageReference

_MAX_PER_DRAW = 1_000  # Images; some metrics need the distances of all pairs.
NUM_DRAWS = 5
MAX_SAMPLES = NUM_DRAWS * _MAX_PER_DRAW  # More samples, or prior samples, are in no draw.


class Pools(NamedTuple):
    """Images, or their features, of all groups to compare, [N, ...] each.

    The `images` are held out. Without `spare` ones, they must also serve as real data.
    """

    images: np.ndarray
    spare: np.ndarray | None
    samples: np.ndarray
    prior: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Pools":
        """Applies a function to each group."""
        spare = None if self.spare is None else function(self.spare)
        return Pools(function(self.images), spare, function(self.samples), function(self.prior))


class Indices(NamedTuple):
    """Rows of the pools that form a draw, equally many of each.

    Attributes:
      reference: rows of `images`.
      real: rows of `spare` or, without spare images, of `images`.
      samples: rows of `samples` and of `prior`.
    """

    reference: np.ndarray
    real: np.ndarray
    samples: np.ndarray


def pools(reference: ImageReference, samples: np.ndarray, prior: np.ndarray) -> Pools:
    """Returns the images of all groups that a draw can have, clipped to the range of pixels."""
    spare = None if reference.spare is None else np.clip(reference.spare, -1.0, 1.0)
    ours = (np.clip(side[:MAX_SAMPLES], -1.0, 1.0) for side in (samples, prior))
    return Pools(np.clip(reference.images, -1.0, 1.0), spare, *ours)


def indices(pools: Pools) -> list[Indices]:
    """Chooses the rows of each draw, which depend only on the numbers of rows.

    With spare images, the reference is all held-out images, and the real data are random subsets of
    the spare images. Without them, each draw splits the held-out images into two random halves. The
    samples of different draws are disjoint if there are enough, and otherwise random subsets. The
    draws are not independent, so their spread is not a confidence interval. If a group has fewer
    than two images, there is no draw.
    """
    num_images, num_samples = len(pools.images), min(len(pools.samples), len(pools.prior))
    num_real = num_images // 2 if pools.spare is None else min(num_images, len(pools.spare))
    num = min(_MAX_PER_DRAW, num_real, num_samples)
    if num < 2:
        return []
    rng = np.random.RandomState(0)  # NumPy guarantees that this stream never changes.
    found = []
    for draw in range(NUM_DRAWS):
        order = rng.permutation(num_images)
        if pools.spare is None:
            reference, real = order[:num], order[num : 2 * num]
        else:
            reference, real = order[:num], rng.permutation(len(pools.spare))[:num]
        if num * NUM_DRAWS <= num_samples:
            ours = np.arange(draw * num, (draw + 1) * num)
        else:
            ours = rng.permutation(num_samples)[:num]
        found.append(Indices(reference, real, ours))
    return found


def compare(
    space: str,
    scores: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    pools: Pools,
    chosen: list[Indices],
) -> list[Metric]:
    """Computes metrics of samples, the prior and real data against the reference, over draws.

    `scores` maps features [N, D], and those of the reference, to values by key of `DEFINITIONS`.
    There must be at least one draw. The name of the feature space may be empty.
    """
    real = pools.images if pools.spare is None else pools.spare
    drawn = [
        [
            scores(side[rows], pools.images[draw.reference])
            for side, rows in (
                (pools.samples, draw.samples),
                (pools.prior, draw.samples),
                (real, draw.real),
            )
        ]
        for draw in chosen
    ]
    num = len(chosen[0].reference)
    return [
        measured(
            definition,
            *(estimate(sides[i][definition] for sides in drawn) for i in range(3)),
            space=space,
            num=num,
        )
        for definition in drawn[0][0]
    ]

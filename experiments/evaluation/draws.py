"""Several draws of equal size from held-out images, samples and the prior.

One value of a metric hides its scatter. So each is computed several times, with references,
samples and real images drawn anew, and reported as mean and standard deviation over the draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.evaluation.metrics import Metric, estimate, with_count
from experiments.evaluation.references import ImageReference

_MAX_PER_DRAW = 1_000  # Distances of all pairs.
NUM_DRAWS = 5


class Pools(NamedTuple):
    """The same thing (images, or features of them) on all sides, [N, ...] each.

    Attributes:
      images: of held-out images.
      spare: of further real images; `None` where held-out images have to serve as real data.
      samples: of generated samples.
      prior: of samples of the prior.
    """

    images: np.ndarray
    spare: np.ndarray | None
    samples: np.ndarray
    prior: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Pools":
        """Applies a function to every side."""
        spare = None if self.spare is None else function(self.spare)
        return Pools(function(self.images), spare, function(self.samples), function(self.prior))


class Indices(NamedTuple):
    """Rows of the pools that make up a draw, of equal number.

    Attributes:
      reference: rows of `images`.
      real: rows of `spare`, or else of `images`.
      samples: rows of `samples` and of `prior`.
    """

    reference: np.ndarray
    real: np.ndarray
    samples: np.ndarray


def pools(reference: ImageReference, samples: np.ndarray, prior: np.ndarray) -> Pools:
    """Returns images of all sides, clipped to the range of pixels."""
    spare = None if reference.spare is None else np.clip(reference.spare, -1.0, 1.0)
    clipped = (np.clip(side, -1.0, 1.0) for side in (reference.images, samples, prior))
    images, samples, prior = clipped
    return Pools(images, spare, samples, prior)


def indices(pools: Pools) -> list[Indices]:
    """Chooses the rows of each draw; the choice depends only on the numbers of rows.

    With spare images the reference is all held-out images, and the real data are random subsets of
    the spare ones. Without, each draw splits the held-out images into two random halves. Samples
    of different draws are disjoint if there are enough of them, else random subsets. None of this
    makes draws independent: their spread measures scatter, it is no confidence interval.

    Returns:
      The draws; none if there are fewer than two images on any side.
    """
    num_images, num_samples = len(pools.images), min(len(pools.samples), len(pools.prior))
    num_real = num_images // 2 if pools.spare is None else min(num_images, len(pools.spare))
    num = min(_MAX_PER_DRAW, num_real, num_samples)
    if num < 2:
        return []
    rng = np.random.RandomState(0)  # NumPy promises that this stream never changes.
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

    Args:
      space: of the features, for the names; may be empty.
      scores: `(features [N, D], features of the reference [N, D]) -> values`, by keys of
        `DEFINITIONS`.
      pools: features.
      chosen: from `indices`; at least one draw.
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
        Metric(
            with_count("_".join(filter(None, (definition, space))), num),
            definition,
            *(estimate(sides[i][definition] for sides in drawn) for i in range(3)),
        )
        for definition in drawn[0][0]
    ]

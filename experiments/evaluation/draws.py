"""Several draws of equal size from held-out images, samples and the prior.

A single value of a metric hides its variation. Each metric is therefore computed several times,
each time with other references, samples and real images, and reported as the mean and standard
deviation over these draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.evaluation.manifold import manifold_metrics
from experiments.evaluation.memorisation import Features
from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import frechet_distance

_MAX_PER_DRAW = 1_000  # Images; some metrics need the distances of all pairs.
NUM_DRAWS = 5
MAX_SAMPLES = NUM_DRAWS * _MAX_PER_DRAW  # More samples, or prior samples, are in no draw.
BUILT_IN = "random_conv"  # The feature space of fixed random filters.
FEWEST_FOR_NEIGHBOURS = 6  # Images; density and coverage need the fifth neighbour of each.


class Draw(NamedTuple):
    """Rows of images, or of their features, that form a draw, equally many of each."""

    reference: np.ndarray
    samples: np.ndarray
    prior: np.ndarray
    real: np.ndarray


class Pool(NamedTuple):
    """Images of all groups, [N, H, W, C], the rows of each group by name, and the draws.

    The groups are "samples", "prior", "held_out" images and, for digits, "spare" ones.
    """

    images: np.ndarray
    rows: dict[str, np.ndarray]
    draws: list[Draw]


def pool(reference: ImageReference, samples: np.ndarray, prior: np.ndarray) -> Pool:
    """Collects the images of all groups, clipped to the range of pixels, and chooses draws."""
    groups = {"samples": samples[:MAX_SAMPLES], "prior": prior[:MAX_SAMPLES]}
    groups |= {"held_out": reference.images}
    groups |= {} if reference.spare is None else {"spare": reference.spare}
    ends = np.cumsum([len(images) for images in groups.values()])
    rows = dict(zip(groups, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    images = np.concatenate(list(groups.values()))
    return Pool(np.clip(images, -1.0, 1.0, out=images), rows, draws_of(rows))


def draws_of(rows: Mapping[str, np.ndarray]) -> list[Draw]:
    """Chooses the rows of each draw, which depend only on the numbers of rows.

    With spare images, the reference is all held-out images, and the real data are random subsets of
    the spare images. Without them, each draw takes two disjoint random sets of held-out images. The
    samples of different draws are disjoint if there are enough, and otherwise random subsets. The
    draws are not independent, so their spread is not a confidence interval. If a group has fewer
    than two images, there is no draw.
    """
    held_out, spare = rows["held_out"], rows.get("spare")
    num_real = len(held_out) // 2 if spare is None else min(len(held_out), len(spare))
    num_samples = min(len(rows["samples"]), len(rows["prior"]))
    num = min(_MAX_PER_DRAW, num_real, num_samples)
    if num < 2:
        return []
    rng = np.random.RandomState(0)  # NumPy guarantees that this stream never changes.
    found = []
    for draw in range(NUM_DRAWS):
        order = rng.permutation(held_out)
        real = order[num : 2 * num] if spare is None else rng.permutation(spare)[:num]
        if num * NUM_DRAWS <= num_samples:
            ours = np.arange(draw * num, (draw + 1) * num)
        else:
            ours = rng.permutation(num_samples)[:num]
        found.append(Draw(order[:num], rows["samples"][ours], rows["prior"][ours], real))
    return found


def compare(
    space: str,
    scores: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    features: np.ndarray,
    draws: list[Draw],
) -> list[Metric]:
    """Computes metrics of samples, the prior and real data against the reference, over draws.

    `scores` maps features [N, D], and those of the reference, to values by key of `DEFINITIONS`.
    There must be at least one draw. The name of the feature space may be empty.
    """
    drawn = [
        [scores(features[rows], features[draw.reference]) for rows in draw[1:]] for draw in draws
    ]
    return [
        measured(
            definition,
            *([sides[i][definition] for sides in drawn] for i in range(3)),
            space=space,
            num=len(draws[0].reference),
        )
        for definition in drawn[0][0]
    ]


def compare_in_spaces(spaces: Mapping[str, Features], pool: Pool) -> list[Metric]:
    """Computes the metrics of `feature_scores` in feature spaces, which map images to features.

    Only the features of images that are in a draw are computed, because the network may be slow.
    """
    if not pool.draws:
        return []
    used = np.unique(np.concatenate([rows for draw in pool.draws for rows in draw]))
    of_used = [Draw(*(np.searchsorted(used, rows) for rows in draw)) for draw in pool.draws]
    return [
        metric
        for space, function in spaces.items()
        for metric in compare(space, feature_scores, function(pool.images[used]), of_used)
    ]


def feature_scores(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Computes the Fréchet distance and, if there are enough images, manifold metrics.

    Both are features: `rows` [N, D] and those of real images, [M, D].
    """
    found = {"frechet": frechet_distance(rows, reference)}
    if min(len(rows), len(reference)) >= FEWEST_FOR_NEIGHBOURS:
        found |= manifold_metrics(rows, reference)._asdict()
    return found

"""Several draws of equal size from held-out images, samples and the prior."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from experiments.data.source import Source
from experiments.errors import UserError
from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.references import ImageReference, Seen, Space, spaces_of
from fdrl_jax.metrics import energy_distance, frechet_distance

_MAX_PER_DRAW = 1_000  # Images; some metrics need the distances of all pairs.
NUM_DRAWS = 5
MAX_SAMPLES = NUM_DRAWS * _MAX_PER_DRAW  # More samples, or prior samples, are in no draw.
_NUM_NEIGHBOURS = 3  # Precision and recall use this many neighbours.
# Of the metric that is computed during training and for curves.
_MAX_POINTS = 5_000  # The distances of all pairs take a second.
_MAX_IMAGES = 2_000  # Their features are computed each time.


class Draw(NamedTuple):
    """Rows of images, or of their features, that form a draw, equally many of each."""

    reference: np.ndarray
    samples: np.ndarray
    prior: np.ndarray
    real: np.ndarray


class Pool(NamedTuple):
    """Images of all groups, [N, H, W, C], the rows of each group by name, and the draws."""

    images: np.ndarray
    rows: dict[str, np.ndarray]
    draws: list[Draw]


def pool(reference: ImageReference, samples: np.ndarray, prior: np.ndarray) -> Pool:
    """Collects the images of all groups, clipped to the range of pixels, and chooses draws.

    Real data are random spare images; without these, a draw takes two disjoint sets of held-out
    images. The samples of draws are disjoint if there are enough, and otherwise random subsets.
    """
    groups = {"samples": samples[:MAX_SAMPLES], "prior": prior[:MAX_SAMPLES]}
    groups |= {"held_out": reference.images}
    groups |= {} if reference.spare is None else {"spare": reference.spare}
    ends = np.cumsum([len(images) for images in groups.values()])
    rows = dict(zip(groups, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    images = np.concatenate(list(groups.values()))
    np.clip(images, -1.0, 1.0, out=images)
    held_out, spare = rows["held_out"], rows.get("spare")
    num_real = len(held_out) // 2 if spare is None else min(len(held_out), len(spare))
    num_samples = min(len(rows["samples"]), len(rows["prior"]))
    num = min(_MAX_PER_DRAW, num_real, num_samples)
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
    return Pool(images, rows, found)


def compare(spaces: Mapping[str, Space], pool: Pool) -> tuple[list[Metric], dict[str, Seen]]:
    """Returns the metrics in each feature space, and what each sees of the images of the pool."""
    metrics, views = [], {name: look(pool.images) for name, look in spaces.items()}
    for name, seen in views.items():
        drawn = [[_scores(seen, rows, d.reference) for rows in d[1:]] for d in pool.draws]
        for definition in drawn[0][0]:
            sides = ([of_draw[side][definition] for of_draw in drawn] for side in range(3))
            num = len(pool.draws[0].reference)
            metrics.append(measured(definition, *sides, space=name, num=num))
    return metrics, views


def _scores(seen: Seen, rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    ours, real = seen.features[rows], seen.features[reference]
    found = {"frechet": frechet_distance(ours, real)}
    if seen.classes is None:
        precision, recall = precision_and_recall(ours, real)
        return found | {"precision": precision, "recall": recall}
    if seen.confidence is not None:
        found["top_probability"] = float(seen.confidence[rows].mean())
    return found | {"smallest_class_share": float(seen.classes[rows].mean(axis=0).min())}


def precision_and_recall(samples: np.ndarray, data: np.ndarray) -> tuple[float, float]:
    """Returns the share of features [N, D] near those of data [M, D], and the share the other way.

    A point is near a set if it is not farther from one of its points than its third neighbour is.
    """
    few = min(len(samples), len(data)) <= _NUM_NEIGHBOURS
    if few or not (np.isfinite(samples).all() and np.isfinite(data).all()):
        return math.nan, math.nan
    between = cdist(samples, data)

    def radii(x: np.ndarray) -> np.ndarray:
        return np.partition(cdist(x, x), _NUM_NEIGHBOURS, axis=1)[:, _NUM_NEIGHBOURS]

    precision = (between <= radii(data)).any(axis=1).mean()
    recall = (between <= radii(samples)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def num_read(reference: Source | ImageReference, num_samples: int) -> int:
    """Returns how many of this many samples the function of `cheap_metric` reads."""
    if isinstance(reference, Source):
        return min(num_samples, _MAX_POINTS)
    # Equally many samples and references, as in the evaluation: the bias depends on the number.
    has_svc = reference.starts is None and reference.fit_images is not None
    return min(num_samples, len(reference.images)) if has_svc else num_samples


def cheap_metric(reference: Source | ImageReference) -> Callable[[np.ndarray], Metric]:
    """Returns the metric of samples [N, ...] that is computed during training and for curves.

    It is the unbiased energy distance to new points, or the Fréchet distance to held-out images in
    their first feature space; NaN unless all samples are finite.
    """
    if isinstance(reference, Source):

        def of_points(samples: np.ndarray) -> Metric:
            samples = samples[:_MAX_POINTS]
            value = energy_distance(samples, reference.held_out(len(samples), 1))
            return measured("energy_distance", [value], num=len(samples))

        return of_points
    if len(reference.images) < 2:
        raise UserError(f"data {reference.name!r}: fewer than 2 held-out images to compare")
    space, look = next(iter(spaces_of(reference).items()))
    real = look(reference.images[:_MAX_IMAGES]).features

    def of_images(samples: np.ndarray) -> Metric:
        samples, value = samples[: num_read(reference, len(samples))], math.nan
        if np.isfinite(samples).all():
            value = frechet_distance(look(samples).features, real)
        return measured("frechet", [value], space=space, num=len(samples))

    return of_images

"""Memorisation: distances of samples, and of new data, to their nearest training images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.rows import flat

# `images [N, H, W, C] float32 in [-1, 1] -> features [N, D] or [N, ...]`.
Features = Callable[[np.ndarray], np.ndarray]
PIXELS = "pixels"  # The feature space of the pixels themselves.


class Neighbours(NamedTuple):
    """The nearest training images of each query, nearest first."""

    distances: np.ndarray  # Euclidean, [Q, k].
    indices: np.ndarray  # Among the images of all batches, [Q, k].
    images: np.ndarray  # Those of the first queries, [num_shown, k, ...].


def nearest(
    queries: np.ndarray,
    train_batches: Iterable[np.ndarray],
    num_neighbours: int,
    features: Features | None = None,
    *,
    num_shown: int = 0,
    mirrored: bool = False,
) -> Neighbours:
    """Finds the `num_neighbours` nearest training images of queries [Q, ...] in one pass.

    Distances are those of pixels, or of features. Only the neighbours of the first `num_shown`
    queries are kept as images. If training `mirrored` images, the mirror images of a batch follow
    it as a batch of their own.
    """
    in_space = features or (lambda images: images)
    rows = flat(in_space(queries))
    distances = np.full((len(rows), 0), np.inf)
    indices = np.zeros((len(rows), 0), int)
    kept: dict[int, np.ndarray] = {}
    seen = 0
    if mirrored:
        train_batches = (of for batch in train_batches for of in (batch, batch[:, :, ::-1]))
    for batch in train_batches:
        numbers = np.broadcast_to(seen + np.arange(len(batch)), (len(rows), len(batch)))
        distances = np.concatenate([distances, _distances(rows, flat(in_space(batch)))], axis=1)
        indices = np.concatenate([indices, numbers], axis=1)
        nearest_first = np.argsort(distances, axis=1, kind="stable")[:, :num_neighbours]
        distances = np.take_along_axis(distances, nearest_first, axis=1)
        indices = np.take_along_axis(indices, nearest_first, axis=1)
        wanted = set(indices[:num_shown].ravel().tolist())
        kept = {i: kept[i] if i < seen else batch[i - seen].copy() for i in wanted}
        seen += len(batch)
    shown = indices[:num_shown]
    images = np.array([kept[i] for i in shown.ravel().tolist()], queries.dtype)
    return Neighbours(distances, indices, images.reshape(*shown.shape, *queries.shape[1:]))


def search(
    samples: np.ndarray,
    held_out: np.ndarray,
    train_batches: Callable[[], Iterator[np.ndarray]],
    spaces: Mapping[str, Features | None],
    *,
    num_shown: int = 8,
    num_neighbours: int = 10,
    mirrored: bool = False,
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Searches for samples in the training set, in one pass of `train_batches()` per feature space.

    Samples [N, H, W, C], and held-out images, which training never saw, [M, H, W, C], are in
    [-1, 1]. Feature spaces are by name, with `None` for pixels. `mirrored` is that of `nearest`.

    Returns the metrics `memorisation_..._SPACE` that are finite, and by space the training images
    nearest to the first samples, [num_shown, num_neighbours, H, W, C].
    """
    found, shown = [], {}
    queries = np.concatenate([samples, held_out])
    num_shown = min(num_shown, len(samples))
    for name, features in spaces.items():
        near = nearest(
            queries,
            train_batches(),
            num_neighbours,
            features,
            num_shown=num_shown,
            mirrored=mirrored,
        )
        ours, theirs = near.distances[: len(samples), 0], near.distances[len(samples) :, 0]
        test = mannwhitneyu(ours, theirs, alternative="less")  # Ties count half.
        with np.errstate(divide="ignore", invalid="ignore"):
            # Not finite if most held-out images are themselves copies.
            ratio = float(np.median(ours) / np.median(theirs))
        scores = {
            "memorisation_auc": float(1.0 - test.statistic / (len(ours) * len(theirs))),
            "memorisation_median_ratio": ratio,
            "memorisation_p_value": float(test.pvalue),
        }
        finite = {key: value for key, value in scores.items() if np.isfinite(value)}
        found += [measured(key, [value], space=name) for key, value in finite.items()]
        shown[name] = near.images
    return found, shown


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * x @ y.T
    return np.sqrt(np.maximum(squares, 0.0))

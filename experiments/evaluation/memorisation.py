"""Memorisation: distances of samples, and of new data, to their nearest training images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from experiments.evaluation.metrics import Metric, measured
from experiments.evaluation.spaces import Seen, Space

_NUM_SHOWN, _NUM_NEIGHBOURS = 8, 10  # Of the picture of nearest training images.


class Neighbours(NamedTuple):
    """The nearest training images of each query, nearest first."""

    distances: np.ndarray  # Euclidean, [Q, k].
    indices: np.ndarray  # Among the images of all batches, [Q, k].
    images: np.ndarray  # Those of the first queries, [num_shown, k, ...].


def nearest(
    queries: np.ndarray,
    train_batches: Iterable[np.ndarray],
    num_neighbours: int,
    features: Callable[[np.ndarray], np.ndarray] = np.asarray,
    num_shown: int = 0,
) -> Neighbours:
    """Finds the training images whose features are nearest to those of queries [Q, ...].

    Only the neighbours of the first `num_shown` queries are kept as images.
    """
    kept: dict[int, np.ndarray] = {}
    rows, seen = _flat(features(queries)), 0
    distances, indices = np.full((len(rows), 0), np.inf), np.zeros((len(rows), 0), int)
    for batch in train_batches:
        numbers = np.broadcast_to(seen + np.arange(len(batch)), (len(rows), len(batch)))
        distances = np.concatenate([distances, _distances(rows, _flat(features(batch)))], axis=1)
        indices = np.concatenate([indices, numbers], axis=1)
        first = np.argsort(distances, axis=1, kind="stable")[:, :num_neighbours]
        distances = np.take_along_axis(distances, first, axis=1)
        indices = np.take_along_axis(indices, first, axis=1)
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
    spaces: Mapping[str, Space],
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Searches for samples in the training set, in one pass for pixels and for each space.

    Returns the metrics `memorisation_auc_SPACE`, if there are held-out images, and by space the
    training images nearest to the first samples, [num_shown, num_neighbours, H, W, C].
    """
    metrics, shown = [], {}
    queries, num_shown = np.concatenate([samples, held_out]), min(_NUM_SHOWN, len(samples))
    for name, look in {"pixels": Seen, **spaces}.items():

        def features(images: np.ndarray, look: Space = look) -> np.ndarray:
            return look(images).features

        near = nearest(queries, train_batches(), _NUM_NEIGHBOURS, features, num_shown)
        ours, theirs = near.distances[: len(samples), 0], near.distances[len(samples) :, 0]
        shown[name] = near.images
        if len(theirs):
            test = mannwhitneyu(ours, theirs)  # Ties count half.
            share = 1.0 - float(test.statistic) / (len(ours) * len(theirs))
            metrics.append(measured("memorisation_auc", [share], space=name))
    return metrics, shown


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * x @ y.T
    return np.sqrt(np.maximum(squares, 0.0))


def _flat(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)

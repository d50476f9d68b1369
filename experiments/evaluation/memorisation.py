"""Does a model repeat its training set? Nearest training images of samples, and of new data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu

from experiments.evaluation.spaces import Features


class Neighbours(NamedTuple):
    """The nearest training images of each query, nearest first.

    Attributes:
      distances: Euclidean, [Q, k].
      indices: numbers of the images in the order of the training set, [Q, k].
    """

    distances: np.ndarray
    indices: np.ndarray


class Memorisation(NamedTuple):
    """Distances of samples to the training set against those of held-out images.

    Attributes:
      median_ratio: median distance of a sample to its nearest training image, over that of a
        held-out image. 0 for copies; 1 as near as new data are; no finite number if most held-out
        images are copies themselves.
      auc: probability that a sample is nearer to the training set than a held-out image, ties
        counted half: 0.5 as near as new data, 1 for copies (area under the ROC curve).
      p_value: of the Mann-Whitney test that samples are not nearer than held-out images.
    """

    median_ratio: float
    auc: float
    p_value: float


def nearest(
    queries: np.ndarray,
    train_batches: Iterable[np.ndarray],
    num_neighbours: int,
    features: Features | None = None,
) -> Neighbours:
    """Finds the nearest training images in one pass over the training set.

    Args:
      queries: images, [Q, ...].
      train_batches: the training set, [B, ...] at a time.
      num_neighbours: k.
      features: space in which distances are taken; that of pixels if left out.
    """
    in_space = features or (lambda images: images)
    rows = _rows(in_space(queries))
    distances = np.full((len(rows), 0), np.inf)
    indices = np.zeros((len(rows), 0), int)
    seen = 0
    for batch in train_batches:
        numbers = np.broadcast_to(seen + np.arange(len(batch)), (len(rows), len(batch)))
        distances = np.concatenate([distances, _distances(rows, _rows(in_space(batch)))], axis=1)
        indices = np.concatenate([indices, numbers], axis=1)
        nearest_first = np.argsort(distances, axis=1, kind="stable")[:, :num_neighbours]
        distances = np.take_along_axis(distances, nearest_first, axis=1)
        indices = np.take_along_axis(indices, nearest_first, axis=1)
        seen += len(batch)
    return Neighbours(distances, indices)


def compare(samples_to_train: np.ndarray, held_out_to_train: np.ndarray) -> Memorisation:
    """Compares two sets of distances to the training set, [N] and [M]."""
    test = mannwhitneyu(samples_to_train, held_out_to_train, alternative="less")
    further = test.statistic / (len(samples_to_train) * len(held_out_to_train))
    with np.errstate(divide="ignore", invalid="ignore"):  # Held-out copies of training images.
        ratio = np.median(samples_to_train) / np.median(held_out_to_train)
    return Memorisation(float(ratio), float(1.0 - further), float(test.pvalue))


def pick(train_batches: Iterable[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Collects training images by number in another pass: `indices.shape + image shape`."""
    wanted, seen = set(indices.ravel().tolist()), 0
    found: dict[int, np.ndarray] = {}
    for batch in train_batches:
        found |= {seen + i: image for i, image in enumerate(batch) if seen + i in wanted}
        seen += len(batch)
    images = np.stack([found[i] for i in indices.ravel().tolist()])
    return images.reshape(*indices.shape, *images.shape[1:])


def judge(
    samples: np.ndarray,
    held_out: np.ndarray,
    train_batches: Callable[[], Iterator[np.ndarray]],
    spaces: Mapping[str, Features | None],
    *,
    num_shown: int = 8,
    num_neighbours: int = 7,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Looks for samples in the training set.

    Args:
      samples: images in [-1, 1], [N, H, W, C].
      held_out: real images that training never saw, [M, H, W, C].
      train_batches: `() -> the training set`, once.
      spaces: feature spaces by name; `None` for that of pixels.
      num_shown: samples whose neighbours are returned, the first ones.
      num_neighbours: of each.

    Returns:
      `memorisation_..._SPACE` to numbers, and for each space the nearest training images,
      [num_shown, num_neighbours, H, W, C].
    """
    figures: dict[str, float] = {}
    shown = {}
    queries = np.concatenate([samples, held_out])
    for name, features in spaces.items():
        found = nearest(queries, train_batches(), num_neighbours, features)
        first, rest = found.distances[: len(samples), 0], found.distances[len(samples) :, 0]
        judged = compare(first, rest)._asdict()
        figures |= {
            f"memorisation_{figure}_{name}": value
            for figure, value in judged.items()
            if np.isfinite(value)
        }
        shown[name] = pick(train_batches(), found.indices[: min(num_shown, len(samples))])
    return figures, shown


def _rows(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64).reshape(len(features), -1)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * x @ y.T
    return np.sqrt(np.maximum(squares, 0.0))

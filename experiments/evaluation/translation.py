"""Metrics of unpaired translation: is it the target domain, and how much of the source is kept?"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from experiments.data import Source
from experiments.data.digits import digits

_MAX_IMAGES = 1_000  # Distances of all pairs.
_MAX_TRAINING = 2_000  # Of each domain, for the judge.


def metrics(source: Source, samples: np.ndarray) -> dict[str, Any]:
    """Computes how many translated images count as the target, and how near they are to sources.

    A support-vector classifier of real training images judges the domain. It knows nothing of the
    estimator; `target_share_of_source` and `target_share_of_data` say how far to trust it.

    Distances are of pixels, in the unit [-1, 1], root mean square. What is kept shows in a
    translated image that is nearer to its own source than to other sources, and much nearer than a
    random image of the target is to a source. `own_source_nearest_share` would be `1 / num_samples`
    by chance.

    Args:
      source: paired domains.
      samples: translated images, `samples[i]` of the source image `starts(i)`.
    """
    num_held_out, num_starts = source.num_starts
    num = min(_MAX_IMAGES, len(samples), num_starts)
    sources = source.starts(np.arange(num)) if source.starts is not None else samples
    translated, targets = np.clip(samples[:num], -1.0, 1.0), source.held_out(num, 0)
    is_target = _fit_judge(source)
    between = _distances(translated, sources)
    own = np.diagonal(between)
    others = (between.sum(axis=1) - own) / max(num - 1, 1)
    return {
        "target_share": float(is_target(translated).mean()),
        "target_share_of_source": float(is_target(sources).mean()),
        "target_share_of_data": float(is_target(targets).mean()),
        "distance_to_own_source": float(own.mean()),
        "distance_to_other_sources": float(others.mean()),
        "distance_of_targets_to_sources": float(_distances(targets, sources).mean()),
        "own_source_nearest_share": float(np.mean(between.argmin(axis=1) == np.arange(num))),
        "num_samples": num,
        "num_held_out_sources": min(num, num_held_out),
    }


def _fit_judge(source: Source) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a classifier of domains to real training images: `images -> [N]`, whether target.

    Digits are judged among all ten, which is harder to please than the choice of two.
    """
    from sklearn.svm import SVC

    if source.name == "digits" and source.labels is not None:
        whole = digits()
        images, labels, target = whole.arrays["real"], whole.arrays["label"], source.labels[0][0]
        judge = SVC(C=10.0, gamma=0.03)
    else:
        target_images = np.concatenate(list(source.train_batches()))[:_MAX_TRAINING]
        first, end = source.num_starts
        positions = np.arange(first, min(end, first + _MAX_TRAINING))
        source_images = source.starts(positions) if source.starts is not None else target_images
        images = np.concatenate([source_images, target_images])
        labels = np.arange(len(images)) >= len(source_images)
        target = True
        judge = SVC(C=10.0)
    judge.fit(_rows(images), labels)
    return lambda images: judge.predict(_rows(images)) == target


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cdist(_rows(x), _rows(y)) / np.sqrt(_rows(x).shape[1])


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)

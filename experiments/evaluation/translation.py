"""Metrics of unpaired translation: is it the target domain, and how much of the source is kept?"""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from scipy.spatial.distance import cdist

from experiments.data import Source, digits
from experiments.errors import UserError

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
    starts = source.starts or _no_starts(source)
    num = min(_MAX_IMAGES, len(samples), starts.num)
    sources = starts(np.arange(num))
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
        "num_held_out_sources": min(num, starts.num_held_out),
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
        target_images = source.train(_MAX_TRAINING)
        starts = source.starts or _no_starts(source)
        first = starts.num_held_out
        source_images = starts(np.arange(first, min(starts.num, first + _MAX_TRAINING)))
        images = np.concatenate([source_images, target_images])
        labels = np.arange(len(images)) >= len(source_images)
        target = True
        judge = SVC(C=10.0)
    judge.fit(_rows(images), labels)
    return lambda images: judge.predict(_rows(images)) == target


def _no_starts(source: Source) -> NoReturn:
    raise UserError(f"data {source.name!r} are not paired, so there is nothing to translate")


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cdist(_rows(x), _rows(y)) / np.sqrt(_rows(x).shape[1])


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)

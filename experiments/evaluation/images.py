"""Evaluation of images."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.evaluation import Evaluation, Samples, draws, memorisation
from experiments.evaluation.inception import Features, fid
from experiments.evaluation.metrics import Metric, by_name, measured
from experiments.evaluation.references import ImageReference, too_few
from experiments.evaluation.spaces import Classifier, spaces_of

_MAX_QUERIES = 1_000  # Samples, and held-out images, whose nearest training images are searched.
_MAX_QUERY_NUMBERS = 2**25  # Limit on the number of their pixels.


def evaluate_images(
    reference: ImageReference,
    samples: Samples,
    *,
    labels: np.ndarray | None = None,
    train_batches: Callable[[], Iterator[np.ndarray]] | None = None,
    classifier: Classifier | None = None,
    inception: Features | None = None,
) -> Evaluation:
    """Compares samples, the prior and equally many real images with held-out images.

    If the refined samples were drawn for classes, these are `labels`, [N]. Without passes over the
    training images, nearest training images and the FID are skipped.
    """
    few = too_few(len(reference.images))
    record: dict[str, Any] = {"num_held_out": len(reference.images), "skipped": [few] * bool(few)}
    metrics: list[Metric] = []
    pool = draws.pool(reference, samples.refined, samples.prior)
    spaces = spaces_of(reference, classifier)
    if not few:
        metrics, views = draws.compare(spaces, pool)
        record |= {"num_draws": draws.NUM_DRAWS, "class_shares": {}}
        groups = ("samples", "prior", "held_out")
        for space, seen in views.items():
            if (classes := seen.classes) is None:
                continue
            record["class_shares"][space] = {
                group: classes[pool.rows[group]].mean(axis=0).round(4).tolist() for group in groups
            }
            if labels is not None and reference.labels is not None:
                right = []
                for group, of in zip(groups, (labels, labels, reference.labels), strict=True):
                    rows = pool.rows[group]
                    right.append([classes[rows, of[: len(rows)]].mean()])
                metrics.append(measured("class_accuracy", *right, space=space))
    if train_batches is None:
        return Evaluation(by_name(metrics), record, {})
    most = min(_MAX_QUERIES, max(2, _MAX_QUERY_NUMBERS // int(np.prod(pool.images.shape[1:]))))
    spaces.pop("svc", None)
    ours, new = (pool.images[pool.rows[group][:most]] for group in ("samples", "held_out"))
    found, nearest = memorisation.search(ours, new[:0] if few else new, train_batches, spaces)
    if inception is not None and not few:
        found.append(fid(inception, [samples.refined], train_batches()))
    return Evaluation(by_name(metrics + found), record, nearest)

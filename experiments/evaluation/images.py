"""Evaluation of images: distances to held-out ones, and to the nearest training images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from experiments.evaluation import Evaluation, Samples, draws, references
from experiments.evaluation.inception import Features, fid
from experiments.evaluation.metrics import Metric, by_name, measured

_MAX_QUERIES = 1_000  # Samples, and held-out images, whose nearest training images are searched.
_MAX_QUERY_NUMBERS = 2**25  # Limit on the number of their pixels.
_NUM_SHOWN, _NUM_NEAREST = 8, 10  # The picture of nearest training images has these.


def evaluate_images(
    reference: references.ImageReference,
    samples: Samples,
    *,
    labels: np.ndarray | None = None,
    train_batches: Callable[[], Iterator[np.ndarray]] | None = None,
    classifier: references.Classifier | None = None,
    inception: Features | None = None,
) -> Evaluation:
    """Compares samples, the prior and equally many real images with held-out images.

    Samples may have `labels`, [N]. Without training images, their neighbours and FID are skipped.
    """
    few = references.too_few(len(reference.images))
    record: dict[str, Any] = {"num_held_out": len(reference.images), "skipped": [few] * bool(few)}
    metrics: list[Metric] = []
    pool = draws.pool(reference, samples.refined, samples.prior)
    spaces = references.spaces_of(reference, classifier)
    if not few:
        metrics, views = draws.compare(spaces, pool)
        record |= {"num_draws": draws.NUM_DRAWS, "class_shares": {}}
        groups = ("samples", "prior", "held_out")
        for space, seen in views.items():
            if (classes := seen.classes) is None:
                continue
            found = {group: classes[pool.rows[group]] for group in groups}
            shares = {group: rows.mean(axis=0).round(4).tolist() for group, rows in found.items()}
            record["class_shares"][space] = shares
            if labels is not None and reference.labels is not None:
                of = zip(found.values(), (labels, labels, reference.labels), strict=True)
                right = [[x[np.arange(len(x)), y[: len(x)]].mean()] for x, y in of]
                metrics.append(measured("class_accuracy", *right, space=space))
    if train_batches is None:
        return Evaluation(by_name(metrics), record, {})
    most = min(_MAX_QUERIES, max(2, _MAX_QUERY_NUMBERS // int(np.prod(pool.images.shape[1:]))))
    spaces.pop("svc", None)
    ours, new = (pool.images[pool.rows[group][:most]] for group in ("samples", "held_out"))
    copied, near = search(ours, new[:0] if few else new, train_batches, spaces)
    if inception is not None and not few:
        copied.append(fid(inception, [samples.refined], train_batches()))
    return Evaluation(by_name(metrics + copied), record, near)


def nearest(
    queries: np.ndarray,
    train_batches: Iterable[np.ndarray],
    num: int,
    look: references.Space,
    num_shown: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns distances of queries [Q, ...] to their nearest training images, indices, images.

    Shapes are [Q, num] and, as only images of the first queries are kept, [num_shown, num, ...].
    """
    kept: dict[int, np.ndarray] = {}
    rows, seen = _flat(look(queries).features), 0
    distances, indices = np.full((len(rows), 0), np.inf), np.zeros((len(rows), 0), int)
    for batch in train_batches:
        numbers = np.broadcast_to(seen + np.arange(len(batch)), (len(rows), len(batch)))
        found = _distances(rows, _flat(look(batch).features))
        distances = np.concatenate([distances, found], axis=1)
        indices = np.concatenate([indices, numbers], axis=1)
        first = np.argsort(distances, axis=1, kind="stable")[:, :num]
        distances = np.take_along_axis(distances, first, axis=1)
        indices = np.take_along_axis(indices, first, axis=1)
        wanted = set(indices[:num_shown].ravel().tolist())
        kept = {i: kept[i] if i < seen else batch[i - seen].copy() for i in wanted}
        seen += len(batch)
    shown = indices[:num_shown]
    images = np.array([kept[i] for i in shown.ravel().tolist()], queries.dtype)
    return distances, indices, images.reshape(*shown.shape, *queries.shape[1:])


def search(
    samples: np.ndarray,
    held_out: np.ndarray,
    train_batches: Callable[[], Iterator[np.ndarray]],
    spaces: Mapping[str, references.Space],
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Returns how often held-out images are farther from training images than samples are.

    There is one pass for pixels and for each space; the images are those nearest to first samples.
    """
    metrics, shown = [], {}
    queries, num_shown = np.concatenate([samples, held_out]), min(_NUM_SHOWN, len(samples))
    for name, look in {"pixels": references.Seen, **spaces}.items():
        near, _, shown[name] = nearest(queries, train_batches(), _NUM_NEAREST, look, num_shown)
        ours, theirs = near[: len(samples), 0], near[len(samples) :, 0]
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

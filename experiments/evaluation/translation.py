"""Evaluation of unpaired translation: does it reach the target, and does it keep the source?"""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from experiments.evaluation import Evaluation, Samples, draws, references
from experiments.evaluation.inception import Features, fid
from experiments.evaluation.metrics import by_name, measured
from experiments.evaluation.references import Classifier, ImageReference

MAX_IMAGES = 1_000  # The distances of all pairs are needed.


def evaluate_translation(
    reference: ImageReference,
    samples: Samples,
    *,
    classifier: Classifier | None = None,
    inception: Features | None = None,
) -> Evaluation:
    """Computes the share of translated images in the target domain, and distances to sources.

    The refined sample `i` belongs to the source image `i`, and source images replace the prior. The
    FID (table 3) compares the translations of held-out sources with held-out targets.
    """
    if reference.starts is None or reference.num_held_out is None:
        raise ValueError(f"the reference of {reference.name!r} has no source images")
    num = min(MAX_IMAGES, len(samples.refined), len(reference.starts))
    sources = reference.starts[:num]
    translated = np.clip(samples.refined[:num], -1.0, 1.0)
    targets = reference.images[:num]
    record: dict[str, Any] = {"start": "source", "num_images": num, "skipped": []}
    record["num_held_out_sources"] = min(num, reference.num_held_out)
    distances = _rms(translated, sources)
    nearest = float(np.mean(distances.argmin(axis=1) == np.arange(num)))
    own, far = float(np.diagonal(distances).mean()), float(_rms(targets, sources).mean())
    metrics = [
        measured("own_source_nearest_share", [nearest], [1.0], [1.0 / num], num=num),
        measured("distance_to_own_source", [own], [0.0], [far]),
    ]
    if (svc := references.svc_of(reference)) is None:
        record["skipped"].append("target_share: no training images of the source for a classifier")
    else:
        seen = [svc(images).classes for images in (translated, sources, targets)]
        shares = [[x[:, reference.fit_target].mean()] for x in seen if x is not None]
        metrics.append(measured("target_share", *shares, space="svc", num=num))
    few = references.too_few(len(reference.images))
    if few and (classifier is not None or inception is not None):
        record["skipped"].append(few)
    elif classifier is not None:
        spaces = {"classifier": references.of_classifier(classifier)}
        metrics += draws.compare(spaces, draws.pool(reference, translated, sources))[0]
    if inception is not None and not few:
        unseen = translated[: reference.num_held_out]
        metrics.append(fid(inception, [unseen], [reference.images]))
    return Evaluation(by_name(metrics), record, {})


def _rms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (np.asarray(images, np.float64).reshape(len(images), -1) for images in (x, y))
    return np.asarray(cdist(x, y) / np.sqrt(x.shape[1]))

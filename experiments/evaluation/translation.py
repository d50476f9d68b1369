"""Evaluation of unpaired translation: does it reach the target, and does it keep the source?"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from experiments.evaluation import Evaluation, Samples, classes, draws
from experiments.evaluation.classes import Classifier
from experiments.evaluation.inception import ImageSet, Inception, unless_it_fails
from experiments.evaluation.memorisation import Features
from experiments.evaluation.metrics import Metric, Metrics, by_name, measured
from experiments.evaluation.references import ImageReference
from experiments.evaluation.rows import flat
from experiments.settings import Settings

MAX_IMAGES = 1_000  # The distances of all pairs are needed.


def evaluate_translation(
    reference: ImageReference,
    samples: Samples,
    *,
    domains: tuple[str, str] = ("source", "target"),
    classifier: Classifier | None = None,
    inception: Inception | None = None,
    spaces: Mapping[str, Features] = MappingProxyType({}),
) -> Evaluation:
    """Computes the share of translated images in the target domain, and distances to sources.

    A support-vector classifier, fitted to real training images, decides which domain an image
    belongs to. Another `classifier`, trained on both domains, has features that see objects. Source
    images replace the prior; the refined sample `i` belongs to the source image `i`. Inception
    metrics (table 3) compare the translations of held-out sources with held-out targets. If they
    fail, the record says so. `spaces` are further feature spaces by name.
    """
    if reference.starts is None or reference.num_held_out is None:
        raise ValueError(f"the reference of {reference.name!r} has no source images")
    num = min(MAX_IMAGES, len(samples.refined), len(reference.starts))
    sources = reference.starts[:num]
    translated = np.clip(samples.refined[:num], -1.0, 1.0)
    targets = reference.images[:num]
    record: dict[str, Any] = {
        "start": "source",
        "source": domains[0],
        "target": domains[1],
        "num_images": num,
        "num_held_out_sources": min(num, reference.num_held_out),
        "num_draws": draws.NUM_DRAWS,
        "skipped": [],
    }
    metrics = []
    svc = classes.svc_of(reference)
    if svc is None:
        record["skipped"].append("target_share: no training images of the source for a classifier")
    else:
        shares = (
            [float(np.mean(svc.predict(images) == reference.fit_target))]
            for images in (translated, sources, targets)
        )
        metrics.append(measured("target_share", *shares, space="svc", num=num))
    metrics += _kept(translated, sources, targets)
    pool = draws.pool(reference, translated, sources)
    if classifier is not None and pool.draws:
        found, record["class_shares_classifier"] = classes.evaluate("classifier", classifier, pool)
        metrics += found
    metrics += draws.compare_in_spaces(spaces, pool)
    if inception is not None:
        unseen = translated[: reference.num_held_out]
        # The standard protocol rounds the images, the paper's does not.
        ours = ImageSet("translated images", lambda: iter([unseen]), is_rounded=False)
        real = ImageSet("held-out images of the target", lambda: iter([reference.images]))
        metrics += unless_it_fails(ours, real, inception, record)
    return Evaluation(by_name(metrics), record, {})


def domains_of(settings: Settings) -> tuple[str, str]:
    """Returns the names of the source and the target of a run."""
    return settings.data.source_class or "source", settings.data.target_class or "target"


def caption(metrics: Metrics) -> str:
    """Returns a caption with both shares; empty without metrics."""
    found = {metric.definition: metric for metric in metrics.values()}
    if (kept := found.get("own_source_nearest_share")) is None:
        return ""
    chance = kept.real.value if kept.real else 0.0
    text = f"nearest to their own source: {100 * kept.value:.0f}% (by chance {100 * chance:.1f}%)"
    if (share := found.get("target_share")) is None:
        return text
    sides = [("sources", share.prior), ("targets", share.real)]
    others = ", ".join(f"{name} {100 * side.value:.0f}%" for name, side in sides if side)
    return f"classified as the target: {100 * share.value:.0f}% ({others}); {text}"


def _kept(translated: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> list[Metric]:
    num, distances = len(translated), _rms(translated, sources)
    nearest = float(np.mean(distances.argmin(axis=1) == np.arange(num)))
    own = float(np.diagonal(distances).mean())
    others, between = _to_others(distances), _to_others(_rms(sources, sources))
    far = float(_rms(targets, sources).mean())
    return [
        measured("own_source_nearest_share", [nearest], [1.0], [1.0 / num], num=num),
        measured("distance_to_own_source", [own], [0.0], [far]),
        measured("distance_to_other_sources", [others], [between], [far]),
    ]


def _to_others(distances: np.ndarray) -> float:
    others = distances.sum(axis=1) - np.diagonal(distances)
    return float((others / max(len(distances) - 1, 1)).mean())


def _rms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(cdist(flat(x), flat(y)) / np.sqrt(flat(x).shape[1]))

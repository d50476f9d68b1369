"""Evaluation of unpaired translation: does it reach the target, and does it keep the source?"""

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from experiments.evaluation import Evaluation, Samples, classes, draws
from experiments.evaluation.classes import Classifier, SvcClassifier
from experiments.evaluation.metrics import Estimate, Metric, Metrics, by_name, measured
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics.rows import flat

MAX_IMAGES = 1_000  # The distances of all pairs are needed.


def evaluate_translation(
    reference: ImageReference,
    samples: Samples,
    *,
    classifier: Classifier | None = None,
) -> Evaluation:
    """Computes the share of translated images in the target domain, and distances to sources.

    A support-vector classifier, fitted to real training images and independent of the estimator,
    decides which domain an image belongs to. Its results on real images of both domains are
    reported next to those on samples. Another `classifier`, trained on both domains, has features
    that see objects.

    Source images replace the prior: each metric is reported next to its values for source images
    and for real target images. `own_source_nearest_share` is about `1 / num_images` by chance. The
    refined sample `i` belongs to the source image `i`.

    Raises:
      ValueError: for a reference without source images.
    """
    if reference.starts is None:
        raise ValueError(f"the reference of {reference.name!r} has no source images")
    starts = reference.starts
    num = min(MAX_IMAGES, len(samples.refined), len(starts.images))
    sources = starts.images[:num]
    translated = np.clip(samples.refined[:num], -1.0, 1.0)
    targets = reference.images[:num]
    record: dict[str, Any] = {
        "start": "source",
        "source": reference.domains[0],
        "target": reference.domains[1],
        "num_images": num,
        "num_held_out_sources": min(num, starts.num_held_out),
        "num_draws": draws.NUM_DRAWS,
        "skipped": [],
    }
    metrics = []
    if reference.fit is None:
        record["skipped"].append("target_share: no training images of the source for a classifier")
    else:
        svc, target = SvcClassifier(reference.fit, probabilities=False), reference.fit.target

        def share(images: np.ndarray) -> Estimate:
            return Estimate(float(np.mean(svc.predict(images) == target)))

        verdicts = (share(images) for images in (translated, sources, targets))
        metrics.append(measured("target_share", *verdicts, space="svc", num=num))
    metrics += _kept(translated, sources, targets)
    images = draws.pools(reference, translated, sources)
    chosen = draws.indices(images)
    if classifier is not None and chosen:
        found, record["class_shares_classifier"] = classes.evaluate(classifier, images, chosen)
        metrics += found
    return Evaluation(by_name(metrics), record, {})


def caption(metrics: Metrics) -> str:
    """Returns a caption: the share in the target domain, and the share nearest to its source."""
    found = {metric.definition: metric for metric in metrics.values()}
    kept = found["own_source_nearest_share"]
    chance = kept.real.value if kept.real else 0.0
    text = f"nearest to their own source: {100 * kept.value:.0f}% (by chance {100 * chance:.1f}%)"
    if (share := found.get("target_share")) is None:
        return text
    sides = [("sources", share.prior), ("targets", share.real)]
    others = ", ".join(f"{name} {100 * side.value:.0f}%" for name, side in sides if side)
    return f"classified as the target: {100 * share.value:.0f}% ({others}); {text}"


def _kept(translated: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> list[Metric]:
    num = len(translated)
    own, others, nearest = _distances(translated, sources)
    far = Estimate(float(_rms(targets, sources).mean()))
    between = float(_distances(sources, sources)[1])
    return [
        measured(
            "own_source_nearest_share",
            *(Estimate(nearest), Estimate(1.0), Estimate(1.0 / num)),
            num=num,
        ),
        measured("distance_to_own_source", Estimate(own), Estimate(0.0), far),
        measured("distance_to_other_sources", Estimate(others), Estimate(between), far),
    ]


def _distances(images: np.ndarray, sources: np.ndarray) -> tuple[float, float, float]:
    """Returns mean distances to the own and to other sources, and the share nearest to its own."""
    between, num = _rms(images, sources), len(images)
    own = np.diagonal(between)
    others = (between.sum(axis=1) - own) / max(num - 1, 1)
    share = np.mean(between.argmin(axis=1) == np.arange(num))
    return float(own.mean()), float(others.mean()), float(share)


def _rms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(cdist(flat(x), flat(y)) / np.sqrt(flat(x).shape[1]))

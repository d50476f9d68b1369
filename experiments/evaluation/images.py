"""Evaluation of images."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments.data.source import Source
from experiments.evaluation import Evaluation, Samples, classes, draws, memorisation
from experiments.evaluation.classes import Classifier
from experiments.evaluation.inception import ImageSet, Inception, unless_it_fails
from experiments.evaluation.memorisation import Features
from experiments.evaluation.metrics import by_name
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import energy_distance, random_conv_features

_MAX_QUERIES = 1_000  # Samples, and held-out images, whose nearest training images are searched.
_MAX_QUERY_NUMBERS = 2**25  # Limit on the number of their pixels.


def evaluate_images(
    reference: ImageReference,
    samples: Samples,
    *,
    labels: np.ndarray | None = None,
    source: Source | None = None,
    classifier: Classifier | None = None,
    inception: Inception | None = None,
    spaces: Mapping[str, Features] = MappingProxyType({}),
    mirrored: bool = False,
) -> Evaluation:
    """Compares samples, the prior and equally many real images with held-out images.

    Refined samples are evaluated. If they were drawn for classes, these are `labels`, [N]. Without
    the training data as `source`, nearest training images and Inception metrics are skipped, and
    the record says so. A classifier that was trained on the same data has features that see
    objects; nearest training images are searched there as well. Inception metrics that fail are
    skipped, too. `spaces` are further feature spaces by name. If training `mirrored` half of its
    images, nearest training images are also searched among the mirror images.
    """
    record: dict[str, Any] = {
        "num_draws": draws.NUM_DRAWS,
        "num_held_out": len(reference.images),
        "skipped": [],
    }
    pool = draws.pool(reference, samples.refined, samples.prior)
    images, rows, chosen = pool
    metrics = []
    if chosen:
        svc = classes.svc_of(reference)
        of_pixels = None if svc is None else svc.probabilities_and_features
        of_groups = _labels(labels, reference)
        for space, one in (("svc", of_pixels), ("classifier", classifier)):
            if one is not None:
                found, record[f"class_shares_{space}"] = classes.evaluate(
                    space, one, pool, of_groups
                )
                metrics += found
        built_in = {draws.BUILT_IN: random_conv_features}
        metrics += draws.compare_in_spaces({**built_in, **spaces}, pool)
        metrics += draws.compare(
            "", lambda x, y: {"pixel_energy_distance": energy_distance(x, y)}, images, chosen
        )
    else:
        record["skipped"].append("distances: fewer than 4 held-out images or 2 samples")
    if source is None:
        wanted = "nearest training images" + " and Inception metrics" * (inception is not None)
        record["skipped"].append(f"{wanted}: the training set is not available")
        return Evaluation(by_name(metrics), record, {})
    most = min(_MAX_QUERIES, max(2, _MAX_QUERY_NUMBERS // int(np.prod(images.shape[1:]))))
    searched: dict[str, Features | None] = {
        memorisation.PIXELS: None,
        draws.BUILT_IN: random_conv_features,
    }
    if classifier is not None:
        searched["classifier"] = classes.features_of(classifier)
    found, nearest = memorisation.search(
        images[rows["samples"][:most]],
        images[rows["held_out"][:most]],
        source.train_batches,
        searched,
        mirrored=mirrored,
    )
    metrics += found
    if inception is not None:
        # Not rounded here: the standard protocol rounds the images, the paper's does not.
        ours = ImageSet("samples of the run", lambda: iter([samples.refined]), is_rounded=False)
        training_set = ImageSet(f"training set of {reference.name}", source.train_batches)
        metrics += unless_it_fails(ours, training_set, inception, record)
    return Evaluation(by_name(metrics), record, nearest)


def _labels(of_samples: np.ndarray | None, reference: ImageReference) -> dict[str, np.ndarray]:
    """Returns the classes of samples, the prior and held-out images, if all of them have some."""
    if of_samples is None or reference.labels is None:
        return {}
    return {"samples": of_samples, "prior": of_samples, "held_out": reference.labels}

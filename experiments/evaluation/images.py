"""Evaluation of images."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.evaluation import Evaluation, Samples, classes, draws, memorisation, spaces
from experiments.evaluation.classes import Classifier, SvcClassifier
from experiments.evaluation.image_sets import ImageSet, in_memory
from experiments.evaluation.inception import Inception, by_inception
from experiments.evaluation.metrics import by_name
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import energy_distance, random_conv_features

_MAX_QUERIES = 1_000  # Samples, and held-out images, whose nearest training images are searched.
_MAX_QUERY_NUMBERS = 2**25  # Limit on the number of their pixels.

TrainBatches = Callable[[], Iterator[np.ndarray]]


def evaluate_images(
    reference: ImageReference,
    samples: Samples,
    *,
    train_batches: TrainBatches | None = None,
    classifier: Classifier | None = None,
    inception: Inception | None = None,
) -> Evaluation:
    """Compares samples, the prior and equally many real images with held-out images.

    Refined samples are evaluated. Without batches of the training set, nearest training images and
    Inception metrics are skipped, and the record says so. A classifier that was trained on the same
    data has features that see objects.

    Raises:
      UserError: for weights of an Inception network that are missing or do not fit.
    """
    record: dict[str, Any] = {"num_draws": draws.NUM_DRAWS, "skipped": []}
    images = draws.pools(reference, samples.refined, samples.prior)
    chosen = draws.indices(images)
    metrics = []
    if chosen:
        svc = None if reference.fit is None else SvcClassifier(reference.fit)
        for name, one in (("svc", svc), ("classifier", classifier)):
            if one is not None:
                found, record[f"class_shares_{name}"] = classes.evaluate(one, images, chosen)
                metrics += found
        in_features = images.map(random_conv_features)
        metrics += draws.compare(spaces.BUILT_IN, spaces.scores, in_features, chosen)
        metrics += draws.compare(
            "", lambda x, y: {"pixel_energy_distance": energy_distance(x, y)}, images, chosen
        )
    else:
        record["skipped"].append("distances: fewer than 4 held-out images or 2 samples")
    if train_batches is None:
        record["skipped"].append("nearest training images: the training set is not available")
        if inception is not None:
            record["skipped"].append("Inception metrics: the training set is not available")
        return Evaluation(by_name(metrics), record, {})
    most = min(_MAX_QUERIES, max(2, _MAX_QUERY_NUMBERS // int(np.prod(images.images.shape[1:]))))
    found, nearest = memorisation.search(
        images.samples[:most],
        images.images[:most],
        train_batches,
        {"pixels": None, spaces.BUILT_IN: random_conv_features},
    )
    metrics += found
    if inception is not None:
        # Not rounded here: the standard protocol rounds the images, the paper's does not.
        ours = in_memory("samples of the run", samples.refined)
        training_set = ImageSet(f"training set of {reference.name}", train_batches)
        found, record["protocols"] = by_inception(ours, training_set, inception)
        metrics += found
    return Evaluation(by_name(metrics), record, nearest)

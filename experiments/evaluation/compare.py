"""Compares one set of images with another."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL
import scipy

import fdrl_jax
from experiments.evaluation import inception, spaces
from experiments.evaluation.image_sets import ImageSet, check_pair
from experiments.evaluation.metrics import Metric
from experiments.evaluation.protocols import METRICS, PROTOCOLS

DEFAULT_METRICS = tuple(name for name in METRICS if name != "inception_score")


class Inception(NamedTuple):
    """Options of the metrics by Inception networks.

    Attributes:
      weights: file of weights, by name of the protocol.
      metrics: some of `METRICS`; each protocol computes those that it supports.
    """

    weights: Mapping[str, str]
    metrics: Sequence[str] = DEFAULT_METRICS


def compare(
    samples: ImageSet,
    reference: ImageSet,
    networks: Inception,
    features: Sequence[str],
    *,
    cache: Path | None = None,
) -> tuple[list[Metric], dict[str, Any]]:
    """Computes metrics of samples against a reference.

    Args:
      samples: images to evaluate.
      reference: real images.
      networks: Inception networks to use.
      features: names of feature spaces to use.
      cache: folder for cached features of references; by default the user's cache.

    Returns:
      The metrics, and a record with "protocols" (how the Inception metrics were computed),
      "features", "samples", "reference" and "versions".

    Raises:
      UserError: for sets that cannot be compared, or missing weights or packages.
    """
    summaries = check_pair(samples, reference)
    metrics, protocols = by_inception(samples, reference, networks, cache=cache)
    for name in features:
        label, function = spaces.get(name)
        metrics += spaces.against(label, function, samples.unit, reference.unit)
    return metrics, {
        "protocols": protocols,
        "features": list(features),
        **{
            side: {
                "where": images.where,
                "num_images": summary.shape[0],
                "image_size": list(summary.shape[1:]),
                "pixels": images.pixels,
                "resized_by": "Pillow, bilinear, antialiased" if images.resized else None,
                "fingerprint": summary.fingerprint,
            }
            for side, images, summary in zip(
                ("samples", "reference"), (samples, reference), summaries, strict=True
            )
        },
        "versions": versions(),
    }


def by_inception(
    samples: ImageSet,
    reference: ImageSet,
    networks: Inception,
    *,
    cache: Path | None = None,
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Computes the metrics of Inception networks, and returns them with their protocols."""
    metrics: list[Metric] = []
    protocols = []
    for name, weights in networks.weights.items():
        protocol = PROTOCOLS[name]
        wanted = [m for m in networks.metrics if m in protocol.metrics]
        computed = inception.compute(samples, reference, protocol, weights, wanted, cache=cache)
        metrics += computed.metrics
        protocols.append(computed.details)
    return metrics, protocols


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute metrics."""
    modules = (fdrl_jax, jax, np, scipy, PIL)
    return {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version()}

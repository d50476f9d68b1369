"""One set of images against another: every metric asked for, and how it was taken."""

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
from experiments.evaluation.protocols import METRICS, PROTOCOLS

DEFAULT_METRICS = tuple(name for name in METRICS if name != "inception_score")


class Inception(NamedTuple):
    """What is asked of an Inception network.

    Attributes:
      weights: file of weights by the name of the protocol.
      metrics: some of `METRICS`; each protocol computes those that it has.
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
) -> dict[str, Any]:
    """Computes metrics of samples against a reference.

    Args:
      samples: images to judge.
      reference: real ones.
      networks: Inception networks to judge by.
      features: names of feature spaces to judge in.
      cache: where features of references are kept; the user's cache if left out.

    Returns:
      "metrics": names, with the number of samples in them, to numbers; "protocols": how those of
      an Inception network were taken; "samples", "reference" and "versions".

    Raises:
      UserError: for sets that cannot be compared, missing weights or packages.
    """
    check_pair(samples, reference)
    metrics: dict[str, float] = {}
    protocols = []
    for name, weights in networks.weights.items():
        protocol = PROTOCOLS[name]
        wanted = [m for m in networks.metrics if m in protocol.metrics]
        judged = inception.judge(samples, reference, protocol, weights, wanted, cache=cache)
        metrics |= judged.metrics
        protocols.append(judged.details)
    for name in features:
        label, function = spaces.get(name)
        metrics |= spaces.judge(label, function, samples.unit, reference.unit)
    return {
        "metrics": metrics,
        "protocols": protocols,
        "features": list(features),
        "samples": _describe(samples),
        "reference": _describe(reference),
        "versions": _versions(),
    }


def _describe(images: ImageSet) -> dict[str, Any]:
    num, *size = images.pixels.shape
    return {
        "where": images.where,
        "num_images": num,
        "image_size": size,
        "pixels": str(images.pixels.dtype),
        "resized_by": "Pillow, bilinear, antialiased" if images.resized else None,
        "fingerprint": images.fingerprint,
    }


def _versions() -> dict[str, str]:
    modules = (fdrl_jax, jax, np, scipy, PIL)
    return {m.__name__: m.__version__ for m in modules} | {"python": platform.python_version()}

"""Chooses the judges by the data."""

from typing import Any

from experiments.data import Source
from experiments.evaluation import digits, images, points, translation
from experiments.sampling.draw import Samples


def evaluate(source: Source, samples: Samples) -> dict[str, Any]:
    """Computes the metrics of samples of a source.

    Args:
      source: the data that the samples should resemble.
      samples: on the host, [N, ...]; the refined ones are judged, and the prior's beside them where
        that tells something.

    Returns:
      Names to numbers, or to lists of numbers, in the order in which a person should read them.
    """
    if source.kind == "points":
        return points.metrics(source, samples.refined)
    if source.starts is not None:
        return translation.metrics(source, samples.refined)
    if source.name == "digits":
        return digits.metrics(source, samples.refined, samples.prior)
    return images.metrics(source, samples.refined, samples.prior)

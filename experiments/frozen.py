"""The data of a run for sampling, pictures and metrics, from the folder of the run only."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import data, settings
from experiments.data import DataOptions, Labels, Source, Starts
from experiments.errors import UserError
from experiments.evaluation.references import ImageReference


def frozen_source(
    described: Mapping[str, Any], of: Mapping[str, Any], reference: ImageReference | None
) -> Source:
    """Returns a source that reads no data from disk. Training needs built-in data.

    It is `described` as by `run.describe_data`, and has the held-out images stored in the run;
    built-in data have no such reference.
    """
    if reference is None:
        return data.load(DataOptions(**settings.section(of, "data")))
    none, classes = np.zeros(0, np.int32), tuple(described["classes"])
    images, labels = reference.images, none if reference.labels is None else reference.labels
    return Source(
        name=described["name"],
        event_shape=tuple(described["event_shape"]),
        held_out=lambda num, seed: images[:num],
        labels=Labels(none, labels, classes) if classes else None,
        starts=_starts(reference),
        identity=described["identity"],
        fingerprint=described["fingerprint"],
    )


def _starts(reference: ImageReference) -> Starts | None:
    kept = reference.starts
    if kept is None:
        return None
    images = kept.images

    def load(positions: np.ndarray) -> np.ndarray:
        if len(positions) and max(positions) >= len(images):
            raise UserError(
                f"the run stores only {len(images):,} images of the source domain; request at most "
                "this many samples"
            )
        return images[np.asarray(positions)]

    return Starts(load, kept.num_held_out, len(images))

"""The data of a run for sampling, pictures and metrics, from the folder of the run only."""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from experiments import data, settings
from experiments.data import DataOptions, Labels, Source, Starts
from experiments.errors import UserError
from experiments.evaluation.references import ImageReference


def frozen_source(
    described: Mapping[str, Any], of: Mapping[str, Any], reference: ImageReference | None
) -> Source:
    """Returns a source that reads no data from disk. Training needs built-in data.

    Args:
      described: the data of the run, from `run.describe_data`.
      of: settings of the run, flat.
      reference: the held-out images stored in the run; `None` for built-in data.
    """
    if reference is None:
        return data.load(DataOptions(**settings.section(of, "data")))
    images, labels = reference.images, reference.labels
    return Source(
        name=described["name"],
        event_shape=tuple(described["event_shape"]),
        arrays=(),
        draw=_cannot_train,
        train_batches=_no_training_data,
        held_out=lambda num, seed: images[:num],
        labels=_labels(labels, tuple(described["classes"])),
        starts=_starts(reference),
        identity=described["identity"],
        fingerprint=described["fingerprint"],
    )


def _labels(held_out: np.ndarray | None, classes: tuple[str, ...]) -> Labels | None:
    if not classes:
        return None
    none = np.zeros(0, np.int32)
    return Labels(none, none if held_out is None else held_out, classes)


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


def _cannot_train(*_: Any) -> NoReturn:
    raise UserError("the run was opened without its data: it cannot be trained")


def _no_training_data(num: int | None = None) -> Iterator[np.ndarray]:
    raise UserError("the run was opened without its data: the training set cannot be read")

"""Real data for comparison with samples, small enough to be stored with a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.built_in import digits
from experiments.data.decode import to_uint8, to_unit
from experiments.data.source import Labels, Source, Starts
from experiments.errors import UserError
from experiments.files import read_npz, replacing

_MAX_HELD_OUT = 10_000
_MAX_OTHERS = 2_000  # Starts of a translation, and images that a classifier is fitted to.
_FEW_IMAGES = 100
_MAX_BYTES = 2**25  # Bytes of uint8 pixels per field.


class ImageReference(NamedTuple):
    """Real images, in [-1, 1], [N, H, W, C] float32. Fields are `None` where data have none."""

    name: str  # Of the data.
    images: np.ndarray  # Held-out images, which training never saw.
    labels: np.ndarray | None = None  # Their classes, [N], for data with labels.
    spare: np.ndarray | None = None  # More real images that no classifier was fitted to; digits.
    fit_images: np.ndarray | None = None  # Training images, to fit a classifier of pixels to.
    fit_labels: np.ndarray | None = None  # Their classes.
    fit_target: int | None = None  # The class that is the target of a translation.
    # Of a translation: the images where samples start, those that training never saw first.
    starts: np.ndarray | None = None
    num_held_out: int | None = None  # The number of these.


def of(source: Source) -> Source | ImageReference:
    """Returns the reference for samples of a data source; for points, it is the source itself."""
    return source if source.kind == "points" else of_images(source)


def too_few(num_held_out: int) -> str:
    """Returns what is wrong with few held-out images, or "" for enough."""
    if num_held_out >= _FEW_IMAGES:
        return ""
    return f"only {num_held_out} held-out images: distances mean nothing below {_FEW_IMAGES}"


def of_images(source: Source) -> ImageReference:
    """Returns the reference of images; reads only those training images that it stores."""
    most = min(_MAX_HELD_OUT, max(2, _MAX_BYTES // int(np.prod(source.event_shape))))
    images, labels, starts = source.held_out(most, 0), source.labels, source.starts
    found = ImageReference(source.name, images, labels and labels.held_out[: len(images)])
    if starts is None:
        if source.name != "digits" or labels is None:
            return found
        # Every second training image is spare: the classifier is not fitted to it.
        train = source.train()
        return found._replace(
            fit_images=train[::2], fit_labels=labels.train[::2], spare=train[1::2]
        )
    most = min(_MAX_OTHERS, most)
    first = starts(np.arange(min(most, starts.num)))
    found = found._replace(starts=first, num_held_out=min(starts.num_held_out, len(first)))
    if source.name == "digits" and labels is not None:
        # All ten digits, because ten classes make a stricter test than two.
        fit, fit_labels, target = digits().arrays["real"], digits().arrays["label"], labels.train[0]
        return found._replace(fit_images=fit, fit_labels=fit_labels, fit_target=int(target))
    positions = np.arange(starts.num_held_out, min(starts.num, starts.num_held_out + most))
    if not len(positions):
        return found
    domains = [starts(positions), source.train(most)]
    fit_labels = np.repeat(np.arange(2, dtype=np.int32), [len(images) for images in domains])
    return found._replace(fit_images=np.concatenate(domains), fit_labels=fit_labels, fit_target=1)


def save(reference: ImageReference, path: Path) -> None:
    """Writes a reference as one .npz, with pixels as uint8 if this is lossless."""
    fields = {name: value for name, value in reference._asdict().items() if value is not None}
    for name, value in fields.items():
        if np.ndim(value) == 4 and np.array_equal(to_unit(rounded := to_uint8(value)), value):
            fields[name] = rounded
    with replacing(path) as file:
        np.savez_compressed(file, **fields)


def load(path: Path) -> ImageReference:
    """Reads what `save` wrote."""

    def restored(stored: np.ndarray) -> Any:
        if stored.ndim == 0:
            return stored.item()
        return to_unit(stored) if stored.dtype == np.uint8 else stored

    return ImageReference(**{name: restored(value) for name, value in read_npz(path).items()})


def frozen_source(kept: ImageReference, described: Mapping[str, Any]) -> Source:
    """Returns the data `described` as by `run.describe_data`, with the stored images only."""
    images, stored, classes = kept.images, kept.starts, tuple(described["classes"])
    none = np.zeros(0, np.int32)

    def start(positions: np.ndarray) -> np.ndarray:
        if stored is None or max(positions, default=0) >= len(stored):
            num = 0 if stored is None else len(stored)
            raise UserError(f"the run stores only {num:,} images to start from; ask for fewer")
        return stored[np.asarray(positions)]

    return Source(
        name=described["name"],
        event_shape=tuple(described["event_shape"]),
        held_out=lambda num, seed: images[:num],
        labels=Labels(none, none if kept.labels is None else kept.labels, classes)
        if classes
        else None,
        starts=None if stored is None else Starts(start, kept.num_held_out or 0, len(stored)),
        identity=described["identity"],
        fingerprint=described["fingerprint"],
    )

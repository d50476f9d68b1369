"""Real data for comparison with samples, stored with a run, and what feature spaces see."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.built_in import digits
from experiments.data.decode import to_uint8, to_unit
from experiments.data.source import Labels, Source, Starts
from experiments.errors import UserError
from experiments.files import read_npz, write_npz
from fdrl_jax.metrics import random_conv_features

# `images [N, H, W, C] in [-1, 1] -> (probabilities [N, classes], features [N, D])`.
Classifier = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_MAX_HELD_OUT, _FEW_IMAGES = 10_000, 100
_MAX_OTHERS = 2_000  # Starts of a translation, and images that a classifier is fitted to.
_MAX_BYTES = 2**25  # Bytes of uint8 pixels per field.


class ImageReference(NamedTuple):
    """Real images, in [-1, 1], [N, H, W, C] float32. Fields are `None` where data have none."""

    name: str  # The name of the data.
    images: np.ndarray  # Held-out images, which training never saw.
    labels: np.ndarray | None = None  # Their classes, [N], for data with labels.
    spare: np.ndarray | None = None  # More real images that no classifier was fitted to; digits.
    fit_images: np.ndarray | None = None  # Training images, to fit a classifier of pixels to.
    fit_labels: np.ndarray | None = None  # Their classes.
    fit_target: int | None = None  # The class that is the target of a translation.
    starts: np.ndarray | None = None  # Of a translation; first those unseen in training.
    num_held_out: int | None = None  # How many of `starts` training never saw.


def of(source: Source) -> Source | ImageReference:
    """Returns the reference for samples of a data source; for points, it is the source itself."""
    return source if source.kind == "points" else of_images(source)


def too_few(num_held_out: int) -> str:
    """Returns what is wrong with few held-out images, or "" for enough."""
    few = f"only {num_held_out} held-out images: distances mean nothing below {_FEW_IMAGES}"
    return few if num_held_out < _FEW_IMAGES else ""


def of_images(source: Source) -> ImageReference:
    """Returns the reference of images; reads only those training images that it stores."""
    most = min(_MAX_HELD_OUT, max(2, _MAX_BYTES // int(np.prod(source.event_shape))))
    images, labels, starts = source.held_out(most, 0), source.labels, source.starts
    found = ImageReference(source.name, images, labels and labels.held_out[: len(images)])
    if starts is None:
        if source.name != "digits" or labels is None:
            return found
        # Every second training image is spare: the classifier is not fitted to it.
        fit, spare = source.train()[::2], source.train()[1::2]
        return found._replace(fit_images=fit, fit_labels=labels.train[::2], spare=spare)
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


def save(reference: ImageReference, path: Path) -> str:
    """Writes a reference, with pixels as uint8 if this is lossless; returns the file's SHA-256."""
    fields = {name: value for name, value in reference._asdict().items() if value is not None}
    for name, value in fields.items():
        if np.ndim(value) == 4 and np.array_equal(to_unit(rounded := to_uint8(value)), value):
            fields[name] = rounded
    return write_npz(path, fields, compressed=True)


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
    held_out = none if kept.labels is None else kept.labels

    def start(positions: np.ndarray) -> np.ndarray:
        if stored is None or max(positions, default=0) >= len(stored):
            num = 0 if stored is None else len(stored)
            raise UserError(f"the run stores only {num:,} images to start from; ask for fewer")
        return stored[np.asarray(positions)]

    return Source(
        name=described["name"],
        event_shape=tuple(described["event_shape"]),
        held_out=lambda num, seed: images[:num],
        labels=Labels(none, held_out, classes) if classes else None,
        starts=None if stored is None else Starts(start, kept.num_held_out or 0, len(stored)),
        identity=described["identity"],
    )


class Seen(NamedTuple):
    """What a feature space sees of images."""

    features: np.ndarray  # [N, D].
    classes: np.ndarray | None = None  # Those that a classifier assigns, one-hot [N, C].
    confidence: np.ndarray | None = None  # Their probabilities, [N], if it has some.


Space = Callable[[np.ndarray], Seen]  # Sees images [N, H, W, C] in [-1, 1].


def spaces_of(reference: ImageReference, classifier: Classifier | None = None) -> dict[str, Space]:
    """Returns the feature spaces that images are compared in, by name, most telling first."""
    spaces: dict[str, Space] = {}
    if reference.starts is None and (svc := svc_of(reference)) is not None:
        spaces["svc"] = svc
    if classifier is not None:
        spaces["classifier"] = of_classifier(classifier)
    return {**spaces, "random_conv": lambda images: Seen(random_conv_features(images))}


def of_classifier(classifier: Classifier) -> Space:
    """Returns the space of the penultimate layer of a classifier."""

    def look(images: np.ndarray) -> Seen:
        probabilities, features = classifier(images)
        classes = _one_hot(probabilities.argmax(axis=1), probabilities.shape[1])
        return Seen(features, classes, probabilities.max(axis=1))

    return look


def svc_of(reference: ImageReference) -> Space | None:
    """Fits a support-vector classifier of pixels, if the reference has images for it.

    Its features, the pairwise decision values, are far from the data for a Gaussian prior.
    """
    if reference.fit_images is None or reference.fit_labels is None:
        return None
    from sklearn.svm import SVC

    # Chosen for the 8 x 8 digits; for other images it is scaled by their pixels.
    gamma = 0.03 if reference.fit_images.shape[1:] == (8, 8, 1) else "scale"
    svc = SVC(C=10.0, gamma=gamma, decision_function_shape="ovo")
    svc.fit(_pixels(reference.fit_images), reference.fit_labels)

    num = int(svc.classes_.max()) + 1

    def look(images: np.ndarray) -> Seen:
        pixels = _pixels(images)
        return Seen(svc.decision_function(pixels), _one_hot(svc.predict(pixels), num))

    return look


def _one_hot(labels: np.ndarray, num: int) -> np.ndarray:
    return np.asarray(labels[:, None] == np.arange(num))


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.clip(images, -1.0, 1.0).reshape(len(images), -1).astype(np.float64)

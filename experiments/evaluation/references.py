"""Real data for comparison with samples, small enough to be stored with a run."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import Labels, Source, digits, to_uint8, to_unit
from experiments.data import Starts as SourceStarts
from experiments.errors import DataError, UserError
from experiments.files import read_npz, replacing

_MAX_IMAGES = 2_000
_MAX_BYTES = 2**25  # Bytes of uint8 pixels per field.


class PointsReference(NamedTuple):
    """A density in the plane.

    Attributes:
      draw: `(num, seed) -> points [num, 2]`, different for each seed.
      log_density: `points [N, 2] -> log p [N]` in nats; `None` if it is unknown.
      modes: centres of a mixture, [M, 2]; `None` if it is not a mixture.
      mode_std: standard deviation of each mode.
    """

    draw: Callable[[int, int], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    modes: np.ndarray | None = None
    mode_std: float | None = None


class Fit(NamedTuple):
    """Training images for fitting a classifier, [N, H, W, C] float32 in [-1, 1], and classes [N].

    A translation has a target class.
    """

    images: np.ndarray
    labels: np.ndarray
    target: int | None = None


class Starts(NamedTuple):
    """Source images of a translation, [N, H, W, C] float32 in [-1, 1].

    Sample `i` starts at image `i`. Images that training never saw come first.
    """

    images: np.ndarray
    num_held_out: int


class ImageReference(NamedTuple):
    """Real images, in [-1, 1], [N, H, W, C] float32.

    Attributes:
      images: held-out images, which training never saw.
      labels: their classes, [N]; `None` for data without labels.
      spare: additional real images that no classifier was fitted to; empty for most data.
      fit: images for fitting a classifier of pixels, for digits and for translations.
      starts: where the samples of a translation start.
      domains: names of the source and the target of a translation.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    spare: np.ndarray | None = None
    fit: Fit | None = None
    starts: Starts | None = None
    domains: tuple[str, str] = ("source", "target")


def of(source: Source, domains: tuple[str, str] = ("", "")) -> PointsReference | ImageReference:
    """Returns the reference for samples of a data source."""
    if source.kind == "points":
        return PointsReference(source.held_out, *(source.density or ()))
    return of_images(source, domains)


def of_images(source: Source, domains: tuple[str, str] = ("", "")) -> ImageReference:
    """Returns the reference for samples of a set of images.

    Reads the held-out images, and only those training images that are stored.
    """
    shape = source.event_shape
    most = min(_MAX_IMAGES, max(2, _MAX_BYTES // int(np.prod(shape))))
    images = source.held_out(most, 0)
    labels = None if source.labels is None else np.asarray(source.labels.held_out[: len(images)])
    reference = ImageReference(source.name, images, labels, source.classes)
    if source.starts is not None:
        num_held_out, num_starts = source.starts.num_held_out, source.starts.num
        starts = source.starts(np.arange(min(most, num_starts)))
        fit = _fit_digits(source) or _fit_domains(source, source.starts, most)
        names = (domains[0] or "source", domains[1] or "target")
        return reference._replace(
            fit=fit, starts=Starts(starts, min(num_held_out, len(starts))), domains=names
        )
    if source.name == "digits" and source.labels is not None:
        # Every second training image is spare: the classifier is not fitted to it.
        train = source.train()
        return reference._replace(fit=Fit(train[::2], source.labels.train[::2]), spare=train[1::2])
    return reference


def _fit_digits(source: Source) -> Fit | None:
    """Returns images of all ten digits, because ten classes make a stricter test than two."""
    if not source.name.startswith("digits") or source.labels is None:
        return None
    whole = digits()
    arrays = whole.arrays
    return Fit(arrays["real"], arrays["label"], int(source.labels.train[0]))


def _fit_domains(source: Source, starts: SourceStarts, most: int) -> Fit | None:
    targets = source.train(most)
    begin, end = starts.num_held_out, starts.num
    positions = np.arange(begin, min(end, begin + most))
    if not len(positions):
        return None
    sources = starts(positions)
    labels = np.arange(len(sources) + len(targets)) >= len(sources)
    return Fit(np.concatenate([sources, targets]), labels.astype(np.int32), target=1)


def save(reference: ImageReference, path: Path) -> None:
    """Writes a reference as one .npz, with pixels as uint8 if this is lossless."""
    fit, starts = reference.fit, reference.starts
    fields: dict[str, Any] = {
        "name": reference.name,
        "classes": np.array(reference.classes, np.str_),
        "domains": np.array(reference.domains, np.str_),
        "images": _stored(reference.images),
        "labels": reference.labels,
        "spare": None if reference.spare is None else _stored(reference.spare),
    }
    if fit is not None:
        fields |= {"fit_images": _stored(fit.images), "fit_labels": fit.labels}
        fields["fit_target"] = fit.target
    if starts is not None:
        fields |= {"starts": _stored(starts.images), "num_held_out": starts.num_held_out}
    kept = {name: value for name, value in fields.items() if value is not None}
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **kept)


def load(path: Path) -> ImageReference:
    """Reads what `save` wrote.

    Raises:
      DataError: if the file is missing, is damaged, or has other content.
    """
    try:
        fields, fit, starts = read_npz(path), None, None
        if "fit_images" in fields:
            target = int(fields["fit_target"]) if "fit_target" in fields else None
            fit = Fit(_restored(fields["fit_images"]), fields["fit_labels"], target)
        if "starts" in fields:
            starts = Starts(_restored(fields["starts"]), int(fields["num_held_out"]))
        source, target_name = map(str, fields["domains"])
        return ImageReference(
            name=str(fields["name"]),
            images=_restored(fields["images"]),
            labels=fields.get("labels"),
            classes=tuple(map(str, fields["classes"])),
            spare=_restored(fields["spare"]) if "spare" in fields else None,
            fit=fit,
            starts=starts,
            domains=(source, target_name),
        )
    except (UserError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a stored reference, or is damaged: {error}") from error


def frozen_source(kept: ImageReference, described: Mapping[str, Any]) -> Source:
    """Returns a source for sampling and pictures, which reads no data from disk.

    It is `described` as by `run.describe_data`, and has the stored held-out images.
    """
    none, classes = np.zeros(0, np.int32), tuple(described["classes"])
    images, labels, starts = kept.images, kept.labels, kept.starts
    kept_starts = None
    if starts is not None:
        load_start = functools.partial(_stored_starts, starts.images)
        kept_starts = SourceStarts(load_start, starts.num_held_out, len(starts.images))
    return Source(
        name=described["name"],
        event_shape=tuple(described["event_shape"]),
        held_out=lambda num, seed: images[:num],
        labels=Labels(none, none if labels is None else labels, classes) if classes else None,
        starts=kept_starts,
        identity=described["identity"],
        fingerprint=described["fingerprint"],
    )


def _stored_starts(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
    if len(positions) and max(positions) >= len(images):
        raise UserError(
            f"the run stores only {len(images):,} images of the source domain; request at most "
            "this many samples"
        )
    return images[np.asarray(positions)]


def _stored(images: np.ndarray) -> np.ndarray:
    rounded = to_uint8(images)
    return rounded if np.array_equal(to_unit(rounded), images) else images


def _restored(stored: np.ndarray) -> np.ndarray:
    return stored if stored.dtype == np.float32 else np.asarray(to_unit(stored))

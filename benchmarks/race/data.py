"""Labelled images from a zip, split so that no contestant sees what it is judged by."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.decode import Transform, decode
from experiments.data.formats import Tree
from experiments.errors import UserError
from experiments.files import replacing


class Images(NamedTuple):
    """Images, uint8 [N, H, W, C], and their classes, int32 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """Three parts of a data set without a common image."""

    contestants: Images  # 70%, on which all contestants train.
    judge: Images  # 20%, on which the classifier trains.
    reference: Images  # 10%, with which samples are compared.

    def write(self, part: str, file: Path) -> Path:
        """Writes a part as data for the program, with the reference as held-out images."""
        images, reference = getattr(self, part), self.reference
        arrays = {"images": images.pixels, "labels": images.labels}
        arrays |= {"held_out_images": reference.pixels, "held_out_labels": reference.labels}
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as stream:
                np.savez(stream, **arrays)
        return file


def load(path: Path) -> Split:
    """Reads a zip with one folder of PNG or JPEG files per class; the split is always the same."""
    records = Tree(str(path)).records()
    if records.labels is None:
        raise UserError(f"{path}: expected a folder of images per class")
    pixels = [decode(records.read(i), Transform(channels=0)) for i in range(len(records))]
    if len(shapes := {image.shape for image in pixels}) != 1:
        found = ", ".join(map(str, sorted(shapes)[:3]))
        raise UserError(f"{path}: expected images of one size, found {found}")
    order = np.random.default_rng(0).permutation(len(pixels))
    parts = np.split(order, [len(order) * 7 // 10, len(order) * 9 // 10])
    return Split(*(Images(np.stack(pixels)[part], records.labels[part]) for part in parts))

"""Splits images into training and held-out images, and into domains."""

import logging
from dataclasses import replace

import numpy as np

from experiments.data import tfds
from experiments.data.formats import Records, Tree, open_npz
from experiments.errors import DataError
from experiments.settings import Data
from fdrl_jax._checks import nearest

TRAIN = "train"
HELD_OUT = ("test", "validation", "val")  # Names of a split of held-out images; the first counts.
# Training images, and held-out images if the data have some of their own.
Part = tuple[Records, Records | None]


def open_parts(options: Data) -> dict[str, tuple[Records, Records]]:
    """Opens training and held-out images: those to learn under "real", to start from "source"."""
    if options.name in ("folder", "npz", "pair") and not options.dir:
        raise DataError(f"data.name={options.name} needs the path of the data: set --data_dir")
    if not (options.keep_aspect or options.resize or options.image_size):
        reason = "needs a side, data.resize or data.image_size: set one of them"
        raise DataError(f"data.keep_aspect=False {reason}")
    classes = {"real": options.target_class, "source": options.source_class}
    if options.name == "pair":
        sides = _pair_of_folders(options)
    elif any(classes.values()) and not all(classes.values()):
        raise DataError("data.source_class and data.target_class go together: set both or none")
    else:
        part = _open(options)
        named = {side: _of_class(part, name) for side, name in classes.items() if name}
        sides = named or {"real": part}
    most = options.num_held_out
    return {side: _numbered_alike(*_with_held_out(part, most)) for side, part in sides.items()}


def _open(options: Data) -> Part:
    if options.name.startswith("tfds:"):
        folder = tfds.find(options.name.removeprefix("tfds:"), options.dir)
        train = tfds.open_split(folder, TRAIN)
        if train is None:
            raise DataError(f"{folder} has no split {TRAIN!r}")
        others = (tfds.open_split(folder, name) for name in HELD_OUT)
        return train, next((split for split in others if split is not None), None)
    if options.name == "npz":
        return open_npz(options.dir)
    tree = Tree(options.dir)
    held_out = next((name for name in HELD_OUT if name in tree.parts), None)
    if TRAIN in tree.parts and held_out:
        return tree.records(TRAIN), tree.records(held_out)
    return tree.records(), None


def _pair_of_folders(options: Data) -> dict[str, Part]:
    tree = Tree(options.dir)
    found = tree.parts
    sides: dict[str, Part] = {}
    domains = {"real": options.target_class or "B", "source": options.source_class or "A"}
    for side, domain in domains.items():
        train = f"{TRAIN}{domain}"
        if train not in found:
            hint = f"; available: {sorted(found)}{nearest(train, found)}"
            raise DataError(f"data.name=pair needs a folder {train!r} in {options.dir}{hint}")
        held_out = next((name + domain for name in HELD_OUT if name + domain in found), None)
        sides[side] = tree.records(train), tree.records(held_out) if held_out else None
    return sides


def _of_class(part: Part, name: str) -> Part:
    def pick(records: Records) -> Records:
        return records.subset(np.flatnonzero(records.labels == records.classes.index(name)))

    train, held_out = part
    if name not in train.classes:
        hint = nearest(name, train.classes)
        raise DataError(f"no class {name!r}{hint}; available: {', '.join(train.classes) or 'none'}")
    return pick(train), pick(held_out) if held_out and name in held_out.classes else None


def _with_held_out(part: Part, most: int) -> tuple[Records, Records]:
    """Holds out some images if none are, the same for every seed; each class keeps its first."""
    train, held_out = part
    if held_out is not None and len(held_out):
        return train, held_out
    total = len(train)
    if total < 2:
        raise DataError(f"{train.where} has {total} image(s); training needs at least 2")
    num = max(1, min(most, total // 10))  # At most a tenth.
    order = np.random.default_rng(0).permutation(total)
    if train.labels is not None:
        first = np.unique(train.labels, return_index=True)[1]
        order = order[~np.isin(order, first)]
    out = np.sort(order[:num] if len(order) else np.array([total - 1]))
    return train.subset(np.setdiff1d(np.arange(total), out)), train.subset(out)


def _numbered_alike(train: Records, held_out: Records) -> tuple[Records, Records]:
    """Numbers held-out classes as in training; drops all labels if training lacks one."""
    labels, unknown = held_out.labels, sorted(set(held_out.classes) - set(train.classes))
    if train.labels is None or labels is None or unknown:
        if train.labels is not None:
            reason = (
                f"training lacks {', '.join(unknown)}" if unknown else "held-out ones lack them"
            )
            logging.getLogger("fdrl").warning("the classes are not used: %s", reason)
        return replace(train, labels=None, classes=()), replace(held_out, labels=None, classes=())
    numbers = np.array([train.classes.index(name) for name in held_out.classes], np.int32)
    return train, replace(held_out, labels=numbers[labels], classes=train.classes)

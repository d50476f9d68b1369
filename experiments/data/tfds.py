"""Reads data sets that tensorflow-datasets has prepared, without TensorFlow.

The sets must be prepared as array_record, a format with random access. Nothing is downloaded, and
the code of the builder is not needed, so your own data sets work like those of TFDS.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.records import Payload, Records, digest
from experiments.errors import DataError
from fdrl_jax._names import nearest

PREFIX = "tfds:"  # Prefix of data.name, as in `tfds:cifar10`.
_DEFAULT_ROOT = "~/tensorflow_datasets"
# NAME or NAME/CONFIG, optionally with :VERSION. Each part begins with a letter or digit, so that a
# name can neither lead out of the root nor be a pattern.
_NAME = re.compile(r"[^\W_][\w.+-]*(/[^\W_][\w.+-]*)?(:[\w.]+)?")


# Keys of `features.json` that name a class: the present format in both spellings, and the old one.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


@dataclass(frozen=True)
class _Split:
    """The images of one split. They are decoded later, with those of other formats."""

    where: str
    data: Any
    image_key: str

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"

    def read(self, index: int) -> Payload:
        try:
            return self.data[index][self.image_key]
        except Exception as error:  # The reader of array_record may raise any error.
            raise ValueError(f"cannot be read: {error}") from error


def find(name: str, root: str) -> str:
    """Returns the folder of a prepared data set, in its newest version unless the name has one.

    The name is NAME, NAME/CONFIG or NAME/CONFIG:VERSION as in TFDS, and `root` the folder with all
    data sets; "" for the default of TFDS.

    Raises:
      DataError: if it is not found; says where it was searched for and how to prepare it.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            "data.name must be tfds:NAME or tfds:NAME/CONFIG, optionally with :VERSION, got "
            f"{name[:100]!r}"
        )
    base = Path(root or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_ROOT).expanduser()
    stem, _, version = name.partition(":")
    found = [info.parent for info in base.glob(f"{stem}/**/dataset_info.json")]
    found = [f for f in found if not version or f.name == version]
    if not found:
        known = sorted(
            {p.parents[1].relative_to(base).as_posix() for p in base.glob("**/dataset_info.json")}
        )
        hint = nearest(stem, known) or "."
        there = f" Available: {', '.join(known[:10])}{hint}" if known else ""
        raise DataError(
            f"TFDS data set {name!r} is not prepared in {base} (searched in --data_dir or "
            f"data.dir, FDRL_DATA_DIR, TFDS_DATA_DIR, {_DEFAULT_ROOT}).{there} Prepare it once "
            f"where TensorFlow is installed: tfds build {stem} --data_dir={base} "
            "--file_format=array_record, and copy the folder here; see docs/data.md"
        )
    configs = sorted({f.parent.relative_to(base).as_posix() for f in found})
    if len(configs) > 1:
        raise DataError(
            f"TFDS data set {name!r} in {base} has several configs: name one of {configs}"
        )
    return str(max(found, key=lambda f: _version(f.name)))


def is_prepared(name: str) -> bool:
    """Whether a `data.name` is that of a prepared data set below the default root of TFDS."""
    try:
        return name.startswith(PREFIX) and bool(find(name.removeprefix(PREFIX), ""))
    except DataError:
        return False


def open_split(folder: str, split: str) -> Records | None:
    """Opens a split of a prepared data set, or returns `None` if it has no such split.

    Raises:
      DataError: if the set has no images, has a format without random access, or is damaged.
    """
    import tensorflow_datasets as tfds

    try:
        _check_classes(Path(folder))
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # Damaged JSON, features of a newer TFDS, and so on.
        raise DataError(f"{folder}: not a readable TFDS data set: {error}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{folder} is stored as {builder.info.file_format.value}, a format without random "
            "access; prepare it with --file_format=array_record"
        )
    if split not in builder.info.splits:
        return None
    info, features = builder.info.splits[split], builder.info.features
    image_keys = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if not image_keys:
        raise DataError(
            f"{folder}: none of the features of the data set is an image: {list(features)}"
        )
    label_keys = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    # Sets such as CIFAR-100 also have coarser labels.
    label_keys.sort(key=lambda k: k not in (builder.info.supervised_keys or ()))
    decoders, labels, classes = {image_keys[0]: tfds.decode.SkipDecoding()}, None, ()
    try:
        data = builder.as_data_source(split=split, decoders=decoders)
        if label_keys:
            numbers = np.array([int(data[i][label_keys[0]]) for i in range(len(data))], np.int32)
            if not (numbers < 0).any():  # Images without a label have -1.
                labels, classes = numbers, tuple(features[label_keys[0]].names)
    except Exception as error:  # The reader of array_record may raise any error.
        raise DataError(f"{folder}: split {split!r} cannot be read: {error}") from error
    fixed = (builder.info.full_name, split, info.num_examples, list(info.shard_lengths))
    files = sorted((p.name, p.stat().st_size) for p in Path(folder).glob(f"*-{split}.*"))
    images = _Split(f"{folder}:{split}", data, image_keys[0])
    keys = range(info.num_examples)
    return Records(images, keys, digest(*fixed), digest(*fixed, files), labels, classes)


def _check_classes(folder: Path) -> None:
    """Checks that a data set names only classes of TFDS, which imports those that it does not know.

    Raises:
      ValueError: with only the reason.
    """
    for path in folder.rglob("features.json"):
        for name in _class_names(json.loads(path.read_bytes())):
            if not name.startswith("tensorflow_datasets."):
                raise ValueError(
                    f"{path.name} names the class {name[:100]!r}, which would be imported and can "
                    "run any code; only classes of tensorflow_datasets are allowed, so prepare the "
                    "data set with its features"
                )


def _class_names(content: Any) -> Iterator[str]:
    """Returns the names of the classes of features, and of features in features."""
    if isinstance(content, list):
        for part in content:
            yield from _class_names(part)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in _CLASS_KEYS and isinstance(value, str):
                yield value
            elif key == "json" and isinstance(value, str):  # Features of the old format, as text.
                yield from _class_names(json.loads(value))
            else:
                yield from _class_names(value)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))

"""Data sets of tensorflow-datasets (TFDS), by index and without TensorFlow.

Sets that exist are read whatever wrote them, also your own. Other sets of TFDS are downloaded and
prepared, which needs TensorFlow.
"""

import contextlib
import functools
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.formats import Payload, Records, digest
from experiments.errors import DataError, first_line
from fdrl_jax._names import nearest

PREFIX = "tfds:"  # Prefix of data.name, as in `tfds:cifar10`.
_DEFAULT_ROOT = "~/tensorflow_datasets"
# Asked before a download, because TFDS tries for minutes where there is no network.
_HOST, _TIMEOUT_SECONDS = "https://storage.googleapis.com/tfds-data", 10
# NAME or NAME/CONFIG, optionally with :VERSION. Each part begins with a letter or digit, so that a
# name can neither lead out of the root nor be a pattern.
_NAME = re.compile(r"[^\W_][\w.+-]*(/[^\W_][\w.+-]*)?(:[\w.]+)?")
# Keys of `features.json` that name a class: the present format in both spellings, and the old one.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


class _TFRecords:
    """The records of TFRecord files by index."""

    def __init__(self, paths: Iterable[Path], parse: Callable[[bytes], Any]) -> None:
        self._parse = parse
        self._places: list[tuple[Path, int, int]] = []  # File, offset and length of each record.
        for path in paths:
            with path.open("rb") as file:
                # A record is its length, 8 bytes, a checksum, 4 bytes, the content and a checksum.
                while header := file.read(12):
                    length = int.from_bytes(header[:8], "little")
                    self._places.append((path, file.tell(), length))
                    file.seek(length + 4, os.SEEK_CUR)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        path, offset, length = self._places[index]
        with path.open("rb") as file:
            file.seek(offset)
            return self._parse(file.read(length))


def find(name: str, root: str) -> str:
    """Returns the folder of a TFDS data set, in its newest version unless the name has one.

    A set that is not there is downloaded and prepared. The name is NAME, NAME/CONFIG or
    NAME/CONFIG:VERSION as in TFDS, and `root` the folder with all data sets; "" for the default of
    TFDS.

    Raises:
      DataError: if it is neither there nor can be prepared; says how to prepare it.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            "data.name must be tfds:NAME or tfds:NAME/CONFIG, optionally with :VERSION, got "
            f"{name[:100]!r}"
        )
    base = Path(root or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_ROOT).expanduser()
    stem, _, version = name.partition(":")
    found = [info.parent for info in base.glob(f"{stem}/**/dataset_info.json")]
    found = [folder for folder in found if not version or folder.name == version]
    if not found:
        return _prepare(name, base)
    configs = sorted({f.parent.relative_to(base).as_posix() for f in found})
    if len(configs) > 1:
        raise DataError(
            f"TFDS data set {name!r} in {base} has several configs: name one of {configs}"
        )
    return str(max(found, key=lambda folder: _version(folder.name)))


def _prepare(name: str, base: Path) -> str:
    """Downloads and prepares a data set of TFDS, and returns its folder."""
    import tensorflow_datasets as tfds

    stem = name.partition(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if stem.partition("/")[0] not in known:
        there = {
            p.parents[1].relative_to(base).as_posix() for p in base.glob("**/dataset_info.json")
        }
        hint = nearest(stem, sorted({*there, *known}))
        raise DataError(f"tfds:{name} is neither a data set of TFDS nor prepared in {base}{hint}")
    missing = f"TFDS data set {name!r} is not prepared in {base}"
    by_hand = (
        f"Prepare it where TensorFlow and a network are available: tfds build {stem} "
        f"--data_dir={base} --file_format=array_record, and copy the folder here; see docs/data.md"
    )
    if find_spec("tensorflow") is None:
        raise DataError(f"{missing}, and preparing it needs the package tensorflow. {by_hand}")
    print(f"{missing}: downloading and preparing it")
    try:
        # Any answer shows that there is a network.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(_HOST, timeout=_TIMEOUT_SECONDS).close()
        builder = tfds.builder(name, data_dir=base, file_format="array_record")
        options = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=options)
    except Exception as error:  # Builders may raise any error, and often need more packages.
        raise DataError(f"{missing}, which failed now: {first_line(error)}. {by_hand}") from error
    return str(builder.data_path)


def open_split(folder: str, split: str) -> Records | None:
    """Opens a split of a prepared data set, or returns `None` if it has no such split.

    Raises:
      DataError: if the set has no images, has a format without random access, or is damaged.
    """
    import tensorflow_datasets as tfds

    try:
        for path in Path(folder).rglob("features.json"):
            _check_features(path)
        builder = tfds.builder_from_directory(folder)
        info, features = builder.info, builder.info.features
        if split not in info.splits:
            return None
        image_keys = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
        if not image_keys:
            raise ValueError(f"none of its features is an image: {list(features)}")
        decoders = {image_keys[0]: tfds.decode.SkipDecoding()}
        if info.file_format == tfds.core.FileFormat.TFRECORD:
            parse = functools.partial(features.deserialize_example_np, decoders=decoders)
            data: Any = _TFRecords(map(Path, info.splits[split].filepaths), parse)
        else:
            data = builder.as_data_source(split=split, decoders=decoders)
        if len(data) != info.splits[split].num_examples:
            raise ValueError(f"{len(data)} of {info.splits[split].num_examples} images are there")
        label_keys = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
        # Sets such as CIFAR-100 also have coarser labels.
        label_keys.sort(key=lambda k: k not in (info.supervised_keys or ()))
        numbers = [int(data[i][key]) for key in label_keys[:1] for i in range(len(data))]
    except Exception as error:  # Damaged JSON, features of a newer TFDS, missing files, and so on.
        raise DataError(f"{folder}: not a readable TFDS data set: {first_line(error)}") from error
    labels, classes = None, tuple[str, ...]()
    if numbers and min(numbers) >= 0:  # Images without a label have -1.
        labels, classes = np.array(numbers, np.int32), tuple(features[label_keys[0]].names)
    fixed = (info.full_name, split, len(data), list(info.splits[split].shard_lengths))
    files = sorted((p.name, p.stat().st_size) for p in Path(folder).glob(f"*-{split}.*"))

    def fetch(index: int) -> Payload:
        return data[index][image_keys[0]]

    where, keys = f"{folder}:{split}:", range(len(data))
    return Records(where, keys, fetch, digest(*fixed), digest(*fixed, files), labels, classes)


def _check_features(path: Path) -> None:
    """Checks that a data set names only classes of TFDS, which imports those that it does not know.

    Raises:
      ValueError: for any other class.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if not isinstance(value, str):
                continue
            if key == "json":  # Features of the old format, as text.
                json.loads(value, object_pairs_hook=check)
            elif key in _CLASS_KEYS and not value.startswith("tensorflow_datasets."):
                raise ValueError(
                    f"{path.name} names the class {value[:100]!r}, which would be imported and can "
                    "run any code; only classes of tensorflow_datasets are allowed, so prepare the "
                    "data set with its features"
                )

    json.loads(path.read_bytes(), object_pairs_hook=check)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))

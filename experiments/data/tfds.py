"""Data sets of tensorflow-datasets (TFDS), by index; only preparing one needs TensorFlow."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.formats import Records, digest
from experiments.errors import DataError, first_line
from fdrl_jax._checks import nearest

# NAME or NAME/CONFIG, optionally with :VERSION. Each part begins with a letter or digit, so that a
# name can neither lead out of the root nor be a pattern.
_NAME = re.compile(r"[^\W_][\w.+-]*(/[^\W_][\w.+-]*)?(:[\w.]+)?")
# Keys of `features.json` that name a class: the present format in both spellings, and the old one.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def find(name: str, root: str) -> str:
    """Returns the folder of a set in `root`, which is prepared if missing; the newest version."""
    if not _NAME.fullmatch(name):
        form = "tfds:NAME or tfds:NAME/CONFIG, optionally with :VERSION"
        raise DataError(f"data.name must be {form}, got {name[:100]!r}")
    root = root or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    base, (stem, _, version) = Path(root).expanduser(), name.partition(":")
    found = [info.parent for info in base.glob(f"{stem}/**/dataset_info.json")]
    found = [folder for folder in found if not version or folder.name == version]
    if not found:
        return _prepare(name, base)
    if len(configs := {folder.parent.relative_to(base).as_posix() for folder in found}) > 1:
        raise DataError(f"tfds:{name} has several configs in {base}: name one of {sorted(configs)}")
    return str(max(found, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)]))


def _prepare(name: str, base: Path) -> str:
    import tensorflow_datasets as tfds

    stem, known = re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False)
    if stem not in known:
        hint = nearest(stem, known)
        raise DataError(f"tfds:{name} is neither a data set of TFDS nor prepared in {base}{hint}")
    print(f"tfds:{name} is not in {base}: downloading and preparing it")
    try:
        with contextlib.suppress(ImportError, RuntimeError):
            import tensorflow

            tensorflow.config.set_visible_devices([], "GPU")  # It would take the memory of JAX.
        builder = tfds.builder(name, data_dir=base, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # Builders may raise any error, and often need more packages.
        advice = f"tfds build {stem} --data_dir={base} --file_format=array_record"
        raise DataError(
            f"tfds:{name} cannot be prepared: {first_line(error)}. Prepare it where TensorFlow and "
            f"a network are available, with {advice}, and copy it here; see docs/own_images.md"
        ) from error
    return str(builder.data_path)


def open_split(folder: str, split: str) -> Records | None:
    """Opens a split of a prepared data set; `None` if it has no such split."""
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
        decoders: Any = {image_keys[0]: tfds.decode.SkipDecoding()}
        data: Any = builder.as_data_source(split=split, decoders=decoders)
        if len(data) != info.splits[split].num_examples:
            raise ValueError(f"{len(data)} of {info.splits[split].num_examples} images are there")
        label_keys = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
        label_keys.sort(key=lambda k: k not in (info.supervised_keys or ()))  # Coarse ones last.
        numbers = [int(data[i][key]) for key in label_keys[:1] for i in range(len(data))]
    except Exception as error:  # Damaged JSON, TFRecord files, features of a newer TFDS, and so on.
        raise DataError(f"{folder}: not a readable TFDS data set: {first_line(error)}") from error
    labels, classes = None, tuple[str, ...]()
    if numbers and min(numbers) >= 0:  # Images without a label have -1.
        labels, classes = np.array(numbers, np.int32), tuple(features[label_keys[0]].names)
    files = sorted((p.name, p.stat().st_size) for p in Path(folder).glob(f"*-{split}.*"))
    identity = digest(info.full_name, split, list(info.splits[split].shard_lengths), files)
    where, keys, image = f"{folder}:{split}:", range(len(data)), image_keys[0]
    return Records(where, keys, lambda i: data[i][image], identity, labels, classes)


def _check_features(path: Path) -> None:
    """Raises a ValueError if a data set names a class that TFDS would import from elsewhere."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key == "json" and isinstance(value, str):  # Features of the old format, as text.
                json.loads(value, object_pairs_hook=check)
            is_class = key in _CLASS_KEYS and isinstance(value, str)
            if is_class and not value.startswith("tensorflow_datasets."):
                reason = "could run any code; only classes of tensorflow_datasets are allowed"
                raise ValueError(f"{path.name}: the class {value[:100]!r} {reason}")

    json.loads(path.read_bytes(), object_pairs_hook=check)

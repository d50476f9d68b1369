"""The 1,797 real 8 x 8 images of handwritten digits that ship with scikit-learn."""

from typing import Any

import jax
import numpy as np

from experiments.data.decoded import spread
from experiments.data.shuffle import shuffled_indices
from experiments.data.source import Labels, Source, Starts
from experiments.errors import DataError

Array = jax.Array
NUM_HELD_OUT = 360


def digits(source_class: str = "", target_class: str = "") -> Source:
    """Grey 8 x 8 images in [-1, 1] with labels, of which a fixed stratified fifth is held out.

    A pair of domains starts from the digit `source_class` and learns `target_class`.

    Raises:
      DataError: if only one of the classes is given, or one is not a digit.

    Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    # Importing scikit-learn takes seconds, and runs on other data do not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, data.target, test_size=NUM_HELD_OUT, random_state=0, stratify=data.target
    )

    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        indices = shuffled_indices(key, positions, len(arrays["real"]))
        batch = {name: arrays[name][indices] for name in ("real", "label")}
        if "source" in arrays:
            other_key = jax.random.fold_in(key, 1)
            others = shuffled_indices(other_key, positions, len(arrays["source"]))
            batch["source"] = arrays["source"][others]
        return batch

    labels = Labels(train_labels, held_out_labels, tuple(map(str, data.target_names)))
    source = Source(
        name="digits",
        event_shape=images.shape[1:],
        arrays={"real": train, "label": train_labels.astype(np.int32)},
        draw=draw,
        train_batches=lambda num=None: iter([train[spread(len(train), num)]]),
        held_out=lambda num, seed: held_out[:num],
        labels=labels,
        identity="digits",
        fingerprint="digits",
    )
    if not source_class and not target_class:
        return source
    return _pair(source, labels, source_class, target_class)


def _pair(whole: Source, labels: Labels, source_class: str, target_class: str) -> Source:
    """Restricts digits to a class to start from and a class to learn."""
    for name in (source_class, target_class):
        if name not in labels.classes:
            raise DataError(
                f"data.source_class={source_class!r} and data.target_class={target_class!r} "
                f"must both be digits, {', '.join(labels.classes)}"
            )
    train, held_out = whole.arrays["real"], whole.held_out(NUM_HELD_OUT, 0)
    of_target, of_source = (
        [np.flatnonzero(part == int(name)) for part in (labels.train, labels.held_out)]
        for name in (target_class, source_class)
    )
    starts = np.concatenate([held_out[of_source[1]], train[of_source[0]]])
    real, unseen = train[of_target[0]], held_out[of_target[1]]
    name = f"digits {source_class} to {target_class}"
    return whole._replace(
        arrays={
            "real": real,
            "label": whole.arrays["label"][of_target[0]],
            "source": train[of_source[0]],
        },
        train_batches=lambda num=None: iter([real[spread(len(real), num)]]),
        held_out=lambda num, seed: unseen[:num],
        labels=labels._replace(
            train=labels.train[of_target[0]], held_out=labels.held_out[of_target[1]]
        ),
        starts=Starts(
            lambda positions: starts[positions % len(starts)], len(of_source[1]), len(starts)
        ),
        identity=name,
        fingerprint=name,
    )

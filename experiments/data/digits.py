"""The 1,797 real 8 x 8 images of handwritten digits that ship with scikit-learn."""

from typing import Any

import jax
import numpy as np

from experiments.data.shuffle import shuffled_indices
from experiments.data.source import Labels, Source, Starts, spread
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
    classes = tuple(map(str, data.target_names))
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, data.target, test_size=NUM_HELD_OUT, random_state=0, stratify=data.target
    )
    name, arrays, starts = "digits", {}, None
    if source_class or target_class:
        if not {source_class, target_class} <= set(classes):
            raise DataError(
                f"data.source_class={source_class!r} and data.target_class={target_class!r} "
                f"must both be digits, {', '.join(classes)}"
            )
        name = f"digits {source_class} to {target_class}"
        arrays["source"] = train[train_labels == int(source_class)]
        first = held_out[held_out_labels == int(source_class)]
        sources = np.concatenate([first, arrays["source"]])
        starts = Starts(
            lambda positions: sources[positions % len(sources)], len(first), len(sources)
        )
        of_target, unseen = train_labels == int(target_class), held_out_labels == int(target_class)
        train, train_labels = train[of_target], train_labels[of_target]
        held_out, held_out_labels = held_out[unseen], held_out_labels[unseen]
    arrays |= {"real": train, "label": train_labels.astype(np.int32)}

    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        indices = shuffled_indices(key, positions, len(arrays["real"]))
        batch = {name: arrays[name][indices] for name in ("real", "label")}
        if "source" in arrays:
            others = shuffled_indices(jax.random.fold_in(key, 1), positions, len(arrays["source"]))
            batch["source"] = arrays["source"][others]
        return batch

    return Source(
        name="digits",
        event_shape=images.shape[1:],
        arrays=arrays,
        draw=draw,
        train_batches=lambda num=None: iter([train[spread(len(train), num)]]),
        held_out=lambda num, seed: held_out[:num],
        num_train=len(train),
        num_held_out=len(held_out),
        labels=Labels(train_labels, held_out_labels, classes),
        starts=starts,
        identity=name,
        fingerprint=name,
    )

"""The 1,797 real 8 x 8 images of handwritten digits that ship with scikit-learn."""

from typing import Any

import jax
import numpy as np

from experiments.data.source import Source, shuffled_indices

Array = jax.Array
NUM_HELD_OUT = 360


def digits() -> Source:
    """Grey 8 x 8 images in [-1, 1] with labels; a fixed stratified fifth is held out.

    Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    # Only now: scikit-learn takes seconds to import, which runs on other data need not wait for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = (data.images[..., None] / 8.0 - 1.0).astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, data.target, test_size=NUM_HELD_OUT, random_state=0, stratify=data.target
    )

    def draw(arrays: Any, host_batch: Any, key: Array, positions: Array) -> dict[str, Array]:
        indices = shuffled_indices(key, positions, len(train))
        return {name: array[indices] for name, array in arrays.items()}

    return Source(
        name="digits",
        kind="images",
        event_shape=images.shape[1:],
        arrays={"real": train, "label": train_labels.astype(np.int32)},
        draw=draw,
        train_batches=lambda: iter([train]),
        held_out=lambda num, seed: held_out[:num],
        labels=(train_labels, held_out_labels),
        classes=tuple(map(str, data.target_names)),
        identity="digits",
        fingerprint="digits",
    )

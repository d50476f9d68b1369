"""The interface of a data set to training and evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np

from experiments.errors import DataError

Array = jax.Array
# Returns the batches of the next steps; `None` for a source on the device.
Take = Callable[[int], dict[str, np.ndarray] | None]


class Density(NamedTuple):
    """A density in closed form."""

    log_density: Callable[[np.ndarray], np.ndarray]  # `points [N, 2] -> log p [N]`, in nats.
    modes: np.ndarray | None = None  # Of a mixture: centres, [M, 2].
    mode_std: float = 0.0


class Labels(NamedTuple):
    """The class of each example, as an index into `classes`."""

    train: np.ndarray  # [N], in the order of `Source.train_batches()`.
    held_out: np.ndarray  # [M], in the order of `Source.held_out(M, seed)`.
    classes: tuple[str, ...]  # Printable names.


class Starts(NamedTuple):
    """The images of the source domain of a translation, where samples start."""

    # `positions [B] -> images [B, ...]`, float32: held-out images, training images, then again.
    load: Callable[[np.ndarray], np.ndarray]
    num_held_out: int
    num: int  # Number of all images.

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return self.load(positions)


def _refuse(*_: Any) -> NoReturn:
    raise DataError("this needs the training data, which the run does not store")


class Source(NamedTuple):
    """A data set on the device, from which `draw` selects, or one that is streamed in batches."""

    name: str  # The setting `data.name`.
    event_shape: tuple[int, ...]  # [2] for points, [H, W, C] for images with values in [-1, 1].
    arrays: Any = ()  # A pytree of NumPy arrays for `draw`, which the caller copies to the devices.
    # `(arrays, host batch, key of the run, positions in the run [B]) -> {"real": [B, ...]}`, in the
    # training step. Images to start from are under "source", classes [B] under "label".
    draw: Callable[[Any, Any, Array, Array], dict[str, Array]] = _refuse
    # `(num=None) -> batches [B, ...]`, float32: the training set in order without augmentation, or
    # `num` examples spread evenly over it. Reads only those.
    train_batches: Callable[..., Iterator[np.ndarray]] = _refuse
    # `(num, seed) -> at most `num` examples`, float32, that training never uses. Reads only those.
    held_out: Callable[[int, int], np.ndarray] = _refuse
    num_train: int = 0  # Number of training images; 0 for generated examples.
    num_held_out: int = 0
    density: Density | None = None  # `None` if it is not known.
    labels: Labels | None = None  # `None` if the data have no classes.
    # Of streamed data: `(seed, batch size of this process, batches to skip, steps per dispatch)`.
    open_feed: Callable[[int, int, int, int], AbstractContextManager[Take]] | None = None
    starts: Starts | None = None  # Of a translation.
    # A hash of names, sizes and labels, or of arrays; the same in a resumed run.
    identity: str = ""

    @property
    def kind(self) -> Literal["points", "images"]:
        """Whether the examples are points in the plane or images."""
        return "points" if len(self.event_shape) == 1 else "images"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by label; empty without labels."""
        return self.labels.classes if self.labels is not None else ()

    def train(self, num: int | None = None) -> np.ndarray:
        """Returns the training set without augmentation, or `num` examples of it, [N, ...]."""
        return np.concatenate(list(self.train_batches(num)))


def describe_shape(event_shape: Sequence[int]) -> str:
    """Returns in words what examples of this shape are."""
    if len(event_shape) != 3:
        return "points in the plane"
    height, width, channels = event_shape
    return f"{'grey' if channels == 1 else 'colour'} images of {width} x {height} pixels"


def spread(total: int, num: int | None) -> np.ndarray:
    """Returns `num` indices spread evenly over `total`, or all: data are often sorted by class."""
    return np.arange(total) if num is None or num >= total else np.arange(num) * total // num

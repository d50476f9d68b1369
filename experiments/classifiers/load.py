"""Opens a trained classifier, wherever it is from."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax

from experiments.build.classifier import restorable
from experiments.build.parts import Apply
from experiments.classifiers.robustness import read_robustness
from experiments.errors import UserError
from experiments.storage.checkpoints import FREE_IN_SAMPLING, Checkpoints
from experiments.storage.workdir import Workdir, read_json

Array = jax.Array


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
      apply: `(variables, x [B, H, W, C]) -> logits [B, number of classes]`.
      variables: arrays.
      input_range: of the pixels of `x`.
    """

    apply: Callable[[Any, Array], Array]
    variables: Any
    input_range: tuple[float, float]


def load(path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]) -> Classifier:
    """Opens the classifier of a workdir, or a checkpoint file of the library `robustness`.

    Args:
      path: the folder or the file.
      classes: those of the data, which the classifier must have.
      event_shape: shape of an image of the data.

    Raises:
      UserError: if there is none, or it is one for other data.
    """
    if path.is_file():
        apply, variables, num_classes = read_robustness(path)
        if num_classes != len(classes) or event_shape[-1] != 3:
            raise UserError(
                f"--classifier={path} tells {num_classes} classes of colour images apart, but the "
                f"data are {event_shape} with {len(classes)} classes"
            )
        return Classifier(apply, variables, (0.0, 1.0))
    workdir = Workdir(path)
    if not workdir.classifier.is_file():
        raise UserError(
            f"--classifier={path} is neither a checkpoint file nor the workdir of a classifier; "
            "train one with --mode=train_classifier"
        )
    trained = read_json(workdir.classifier, "classes", "event_shape")
    for name, ours in (("classes", classes), ("event_shape", event_shape)):
        if trained[name] != list(ours):
            raise UserError(
                f"--classifier={path} was trained on other data: its {name} are {trained[name]}, "
                f"those here {list(ours)}"
            )
    settings = read_json(workdir.config, "settings")["settings"]
    network, template = restorable(settings, event_shape, len(classes))
    with contextlib.closing(Checkpoints(workdir.checkpoints, keep=1)) as store:
        state = store.restore(template, settings, FREE_IN_SAMPLING)
    if state is None:
        raise UserError(f"no checkpoint in {workdir.checkpoints}; train on")
    return Classifier(cast(Apply, network.apply), state.ema_variables, (-1.0, 1.0))

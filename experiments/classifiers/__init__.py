"""Classifiers that guide the flow or evaluate samples, from a run or the library `robustness`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from experiments import run
from experiments.build.classifier import Apply
from experiments.build.network import Network, make_network
from experiments.build.training import init_state
from experiments.classifiers.robustness import read_robustness
from experiments.errors import UserError
from experiments.files import read_json, sha256_of_arrays
from experiments.machine import hardware
from experiments.run import Run

Array = jax.Array
_BATCH_SIZE = 250


class Classifier(NamedTuple):
    """A trained classifier, `apply(variables, x [B, H, W, C]) -> logits [B, number of classes]`."""

    apply: Callable[[Any, Array], Array]
    variables: Any
    input_range: tuple[float, float]  # Of the pixels of `x`.


def load(path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]) -> Classifier:
    """Opens the classifier of a workdir, or of a checkpoint file of the library `robustness`.

    Raises:
      UserError: if there is no classifier, or it belongs to other data, by classes or shape.
    """
    if path.is_file():
        apply, variables, num_classes = read_robustness(path)
        if num_classes != len(classes) or event_shape[-1] != 3:
            raise UserError(
                f"--classifier={path} has {num_classes} classes of colour images, but the data "
                f"have {len(classes)} classes and images of shape {event_shape}"
            )
        return Classifier(apply, variables, (0.0, 1.0))
    network, variables, *_ = _restored(path, classes, event_shape)
    return Classifier(cast(Apply, network.apply), variables, (-1.0, 1.0))


def load_features(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """Opens the classifier of a workdir for the evaluation of samples.

    Returns:
      `images [N, H, W, C] in [-1, 1] -> (probabilities [N, number of classes], features of the
      penultimate layer [N, D])`, and a description as values for JSON: the name of the folder, the
      accuracy on a number of held-out images, and the SHA-256 digest of the variables.

    Raises:
      UserError: if there is no classifier, if it was trained on other data, or if its training is
        not complete, so that its accuracy is unknown.
    """
    if path.is_file():
        raise UserError(
            f"--classifier={path}: an evaluation needs a classifier trained by this program, with "
            "features and a known accuracy; train one with --mode=train_classifier"
        )
    network, variables, step, trained = _restored(path, classes, event_shape)
    accuracy = trained.root / "accuracy.json"
    stored = read_json(accuracy, step=int, metrics=dict) if accuracy.is_file() else {}
    if stored.get("step") != step:
        raise UserError(
            f"--classifier={path} has no known accuracy at step {step}: its training has not "
            "finished; run --mode=train_classifier again"
        )

    @jax.jit
    def outputs(variables: Any, x: Array) -> tuple[Array, Array]:
        logits = cast(Array, network.apply(variables, x))
        features = cast(Array, network.apply(variables, x, features=True))
        return jax.nn.softmax(logits), features

    def probabilities_and_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = -len(images) % _BATCH_SIZE  # All batches run the same compiled program.
        whole = np.concatenate([images, np.zeros((padded, *images.shape[1:]), images.dtype)])
        batches = whole.reshape(-1, _BATCH_SIZE, *images.shape[1:])
        parts = [outputs(variables, np.clip(batch, -1.0, 1.0)) for batch in batches]
        probabilities, features = map(np.concatenate, zip(*parts, strict=True))
        return probabilities[: len(images)], features[: len(images)]

    return probabilities_and_features, {
        "name": trained.root.resolve().name,
        "accuracy": stored["metrics"]["clean_accuracy"],
        "num_held_out": stored["metrics"]["num_images"],
        "digest": sha256_of_arrays(jax.tree.map(np.asarray, variables)),
    }


def _restored(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]
) -> tuple[Network, Any, int, Run]:
    """Returns the network of a workdir, its variables, their step, and the run."""
    if not run.exists(path):
        raise UserError(
            f"--classifier={path} is neither a checkpoint file nor the workdir of a classifier; "
            "train one with --mode=train_classifier"
        )
    trained = run.open_run(path)
    if trained.kind != "classifier":
        raise UserError(
            f"--classifier={path} contains a density ratio, not a classifier; train one with "
            "--mode=train_classifier"
        )
    for name, ours in (("classes", classes), ("event_shape", event_shape)):
        if trained.data[name] != list(ours):
            raise UserError(
                f"--classifier={path} was trained on other data: its {name} are "
                f"{trained.data[name]}, and those of this run are {list(ours)}"
            )
    settings = hardware.resolved(trained.settings)  # This process multiplies as its own run does.
    network = make_network(settings, event_shape, len(classes))
    shapes = jax.eval_shape(lambda: init_state(settings, network, event_shape))
    state = trained.restored(shapes).state
    return network, state.ema_variables, int(state.step), trained

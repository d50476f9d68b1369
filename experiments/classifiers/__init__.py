"""Classifiers that guide the flow or evaluate samples, from a run or the library `robustness`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from experiments import run
from experiments.build.classifier import Apply
from experiments.build.network import Network, make_network
from experiments.build.training import state_shapes
from experiments.classifiers.robustness import read_robustness
from experiments.errors import UserError
from experiments.files import read_json, sha256_of_arrays
from experiments.machine import hardware
from experiments.run import Run

Array = jax.Array
_BATCH_SIZE = 250


class Classifier(NamedTuple):
    """A trained classifier, `apply(variables, x [B, H, W, C]) -> logits [B, number of classes]`.

    The pixels of `x` are in its input range.
    """

    apply: Callable[[Any, Array], Array]
    variables: Any
    input_range: tuple[float, float]


class FeatureClassifier(NamedTuple):
    """A trained classifier as a feature space, with its accuracy.

    Attributes:
      outputs: `(variables, x [B, H, W, C] in [-1, 1]) -> (probabilities [B, number of classes],
        features of the penultimate layer [B, D])`.
      variables: arrays.
      name: name of its folder.
      accuracy: share of held-out images that it classifies correctly.
      num_held_out: number of held-out images.
      digest: SHA-256 digest of the variables.
    """

    outputs: Callable[[Any, Array], tuple[Array, Array]]
    variables: Any
    name: str
    accuracy: float
    num_held_out: int
    digest: str

    def describe(self) -> dict[str, Any]:
        kept = ("name", "accuracy", "num_held_out", "digest")
        return {field: getattr(self, field) for field in kept}

    def probabilities_and_features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps images in [-1, 1], [N, H, W, C], to probabilities and features."""
        padded = -len(images) % _BATCH_SIZE  # All batches run the same compiled program.
        whole = np.concatenate([images, np.zeros((padded, *images.shape[1:]), images.dtype)])
        batches = whole.reshape(-1, _BATCH_SIZE, *images.shape[1:])
        parts = [self.outputs(self.variables, np.clip(batch, -1.0, 1.0)) for batch in batches]
        probabilities, features = (
            np.concatenate([np.asarray(part) for part in side])[: len(images)]
            for side in zip(*parts, strict=True)
        )
        return probabilities, features


def load(path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]) -> Classifier:
    """Opens the classifier of a workdir, or of a checkpoint file of the library `robustness`.

    The data must have its classes.

    Raises:
      UserError: if there is no classifier, or it belongs to other data.
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
) -> FeatureClassifier:
    """Opens the classifier of a workdir for the evaluation of samples.

    The data must have its classes.

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

    return FeatureClassifier(
        outputs=outputs,
        variables=variables,
        name=trained.root.resolve().name,
        accuracy=stored["metrics"]["clean_accuracy"],
        num_held_out=stored["metrics"]["num_images"],
        digest=sha256_of_arrays(jax.tree.map(np.asarray, variables)),
    )


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
    with trained.saved_checkpoints() as store:
        restored = store.restore(state_shapes(settings, network, event_shape))
    if restored is None:
        raise UserError(f"no checkpoint of a classifier in {path}; resume its training")
    return network, restored.state.ema_variables, int(restored.state.step), trained

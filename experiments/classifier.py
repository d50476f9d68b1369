"""Classifiers of images: trains one, and opens one to guide the flow or to judge samples."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments import adversarial, devices, run
from experiments.adversarial import Attack
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.experiment import (
    Network,
    Training,
    count_classes,
    explained,
    init_state,
    make_network,
    step_options,
)
from experiments.files import read_sealed, sha256_of_arrays, write_sealed
from experiments.run import Run
from experiments.settings import Settings
from fdrl_jax import networks
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState, Variables
from fdrl_jax.training.steps import TrainStep

Array = jax.Array
Apply = Callable[[Variables, Array], Array]

_NUM_ATTACK_STEPS = 20  # Of the evaluation, whose attack is stronger than in training.
_NUM_TESTED, _NUM_JUDGED = 500, 250  # Images per batch.


def build(settings: Settings, source: Source) -> Training:
    """Builds the training of a classifier on labelled images, attacked if the settings say so."""
    num_classes = count_classes(settings, source, "a classifier")
    if source.labels is not None and len(np.unique(source.labels.train)) < 2:
        raise UserError(
            "a classifier needs training images of at least two classes, without data.target_class"
        )
    with explained():
        network = make_network(settings, source.event_shape, num_classes)

    def make_step(num_replicas: int | None) -> TrainStep:
        with explained():
            return adversarial.make_train_step(
                cast(Apply, network.apply),
                attack=_make_attack(settings, settings.classifier.attack_steps),
                refresh=networks.update_vectors,
                max_shift=settings.classifier.max_shift,
                draw=source.draw,
                **step_options(settings, num_replicas),
            )

    return Training(
        settings=settings,
        source=source,
        network=network,
        constants=Constants(source.arrays, ()),
        output="logits",
        make_step=make_step,
    )


def write_accuracy(trained: Run, training: Training, state: TrainState) -> dict[str, float]:
    """Writes the shares of held-out images that are classified correctly, also under attack.

    `open_to_judge` reads them from the run.
    """
    source, settings = training.source, training.settings
    attack = _make_attack(settings, _NUM_ATTACK_STEPS)
    apply = cast(Apply, training.network.apply)

    @jax.jit
    def correct(variables: Variables, x: Array, y: Array) -> tuple[Array, Array]:
        def is_right(x: Array) -> Array:
            return jnp.argmax(apply(variables, x), axis=-1) == y

        attacked = adversarial.perturb(lambda x: apply(variables, x), x, y, attack)
        return is_right(x), is_right(attacked)

    labels = source.labels.held_out if source.labels is not None else np.zeros(0)
    images = source.held_out(len(labels), 0)
    variables = jax.tree.map(np.asarray, state.ema_variables)
    parts = [slice(first, first + _NUM_TESTED) for first in range(0, len(images), _NUM_TESTED)]
    found = [correct(variables, images[part], labels[part]) for part in parts]
    clean, robust = (float(np.mean(np.concatenate(side))) for side in zip(*found, strict=True))
    shares = {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_at_epsilon": settings.classifier.epsilon,
        "num_images": len(images),
    }
    write_sealed(trained.root / "accuracy.json", {"step": int(state.step), "metrics": shares})
    return shares


def open_to_guide(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]
) -> tuple[Apply, Variables]:
    """Opens the classifier of a run to guide the flow: `apply(variables, x [B, H, W, C])`.

    Pixels are in [-1, 1]. The result has the logits [B, number of classes].
    """
    network, state, _ = _restored(path, classes, event_shape)
    return cast(Apply, network.apply), state.ema_variables


def open_to_judge(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...], identity: str = ""
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """Opens the classifier of a run for the evaluation of samples.

    Warns if its training images are not those of the given `Source.identity`.

    Returns:
      `images [N, H, W, C] in [-1, 1] -> (probabilities [N, number of classes], features of the
      penultimate layer [N, D])`, and a description as values for JSON: the name of the folder, the
      accuracy on a number of held-out images, and the SHA-256 digest of the variables.
    """
    network, state, trained = _restored(path, classes, event_shape)
    variables, file = state.ema_variables, trained.root / "accuracy.json"
    stored = read_sealed(file) if file.is_file() else {}
    if stored.get("step") != int(state.step):
        raise UserError(
            f"the training of --classifier={path} is not complete; run --mode=classifier again"
        )

    if identity and identity != trained.data["identity"]:
        logging.getLogger("fdrl").warning(
            "--classifier=%s was trained on other images, or on the same ones under other names, "
            "so held-out images of this run may be among them; is data.num_held_out the same?",
            path,
        )

    @jax.jit
    def outputs(variables: Any, x: Array) -> tuple[Array, Array]:
        logits = cast(Array, network.apply(variables, x))
        features = cast(Array, network.apply(variables, x, features=True))
        return jax.nn.softmax(logits), features

    def probabilities_and_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = -len(images) % _NUM_JUDGED  # All batches run the same compiled program.
        whole = np.concatenate([images, np.zeros((padded, *images.shape[1:]), images.dtype)])
        batches = whole.reshape(-1, _NUM_JUDGED, *images.shape[1:])
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
) -> tuple[Network, TrainState, Run]:
    """Returns the network of a classifier and its newest state, if it belongs to the same data."""
    trained = run.open_run(path) if run.exists(path) else None
    if trained is None or trained.kind != "classifier":
        raise UserError(
            f"--classifier={path} is not the folder of a classifier; train one with "
            "--mode=classifier"
        )
    theirs = trained.data["classes"], trained.data["event_shape"]
    ours = list(classes), list(event_shape)
    if theirs != ours:
        raise UserError(
            f"--classifier={path} was trained on other data: its classes and shape are {theirs}, "
            f"and those of this run are {ours}"
        )
    # Only its layers compute in its precision; this process multiplies as its own run does.
    used = devices.resolved(trained.settings)
    network = make_network(used, event_shape, len(classes))
    shapes = jax.eval_shape(lambda: init_state(used, network, event_shape))
    return network, trained.restored(shapes).state, trained


def _make_attack(settings: Settings, num_steps: int) -> Attack:
    """Returns the attack on pixels in [-1, 1]; `classifier.epsilon` is for [0, 1]."""
    return Attack(2.0 * settings.classifier.epsilon, num_steps)

"""Classifiers of images: trains one, and opens one to guide the flow or to judge samples.

Training is adversarial on the L2 ball (Madry et al., arXiv 1706.06083): the flow follows the
gradient, which points towards features of a class only if the classifier is robust (Santurkar et
al., 2019).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import devices, experiment, run
from experiments.data.source import Source
from experiments.errors import UserError
from experiments.experiment import Network, Training, explained
from experiments.files import read_sealed, sha256_of_arrays, write_sealed
from experiments.run import Run
from experiments.settings import Settings
from fdrl_jax import networks
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState, Variables
from fdrl_jax.training.steps import TrainStep, from_gradients

Array = jax.Array
Apply = Callable[[Variables, Array], Array]

_NUM_ATTACK_STEPS = 20  # Of the evaluation, whose attack is stronger than in training.
_NUM_TESTED, _NUM_JUDGED = 500, 250  # Images per batch.
_TINY = 1e-12


def perturb(
    classifier: Callable[[Array], Array], x: Array, labels: Array, epsilon: float, num_steps: int
) -> Array:
    """Finds images near `x`, [B, ...] in [-1, 1], on which a classifier has a large loss.

    Each step is `x <- clip(project(x + a g / |g|))`, where `g` is the gradient of the cross-entropy
    and the projection is onto `|x - x_0| <= ε`. The first step starts at `x_0`. The length `a` of
    `2.5 ε / num_steps` can reach every point of the ball. With `epsilon` 0, `x` stays as it is.
    """
    size = 2.5 * epsilon / max(num_steps, 1)

    def norms(x: Array) -> Array:
        total = jnp.sum(x**2, axis=tuple(range(1, x.ndim)), keepdims=True)
        return jnp.maximum(jnp.sqrt(total), _TINY)

    def step(_: int, moved: Array) -> Array:
        gradient = jax.grad(lambda x: jnp.sum(_cross_entropy(classifier(x), labels)))(moved)
        offset = moved + size * gradient / norms(gradient) - x
        return jnp.clip(x + offset * jnp.minimum(1.0, epsilon / norms(offset)), -1.0, 1.0)

    moved: Array = lax.fori_loop(0, num_steps, step, x) if epsilon else x
    return lax.stop_gradient(moved)


def shifted(keys: Array, images: Array, max_shift: int) -> Array:
    """Shifts each image [B, H, W, C] by up to `max_shift` pixels; the border is repeated."""

    def of_image(own: Array, image: Array) -> Array:
        offset = jax.random.randint(own, (2,), 0, 2 * max_shift + 1, jnp.int32)
        border = (max_shift, max_shift)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="edge")
        return lax.dynamic_slice(padded, (*offset, jnp.int32(0)), image.shape)

    moved: Array = jax.vmap(of_image)(keys, images)
    return moved


def build(settings: Settings, source: Source) -> Training:
    """Builds the training of a classifier: the cross-entropy on attacked, shifted images.

    The metrics are "loss", "accuracy" (both under attack) and "grad_norm".
    """
    num_classes = experiment.count_classes(settings, source, "a classifier")
    if source.labels is not None and len(np.unique(source.labels.train)) < 2:
        raise UserError(
            "a classifier needs training images of at least two classes, without data.target_class"
        )
    with explained():
        network = experiment.make_network(settings, source.event_shape, num_classes)
    apply, max_shift = cast(Apply, network.apply), settings.classifier.max_shift
    attack = _epsilon(settings), settings.classifier.attack_steps

    def loss_and_grads(
        variables: Variables, key: Array, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, dict[str, Array]]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = source.draw(constants.data, host_batch, data_key, positions)
        real = batch["real"].astype(jnp.float32)
        if max_shift:
            keys = rng.example_keys(key, rng.Stream.AUGMENTATION, positions)
            real = shifted(keys, real, max_shift)
        x = perturb(lambda x: apply(variables, x), real, batch["label"], *attack)

        def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = apply({**variables, "params": params}, x)
            loss = jnp.mean(_cross_entropy(logits, batch["label"]))
            correct = jnp.argmax(logits, axis=-1) == batch["label"]
            return loss, {"loss": loss, "accuracy": jnp.mean(correct)}

        result: tuple[Any, dict[str, Array]] = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return result

    def make_step() -> TrainStep:
        options = experiment.step_options(settings)
        return from_gradients(loss_and_grads, refresh=networks.update_vectors, **options)

    return Training(
        settings=settings,
        source=source,
        network=network,
        constants=Constants(source.arrays, ()),
        output="logits",
        make_step=make_step,
    )


def write_accuracy(trained: Run, training: Training, state: TrainState) -> dict[str, float]:
    """Writes the shares of held-out images that are classified correctly, also under attack."""
    source, epsilon = training.source, _epsilon(training.settings)
    apply = cast(Apply, training.network.apply)

    @jax.jit
    def correct(variables: Variables, x: Array, y: Array) -> tuple[Array, Array]:
        attacked = perturb(lambda x: apply(variables, x), x, y, epsilon, _NUM_ATTACK_STEPS)
        clean, robust = (jnp.argmax(apply(variables, of), axis=-1) == y for of in (x, attacked))
        return clean, robust

    labels = source.labels.held_out if source.labels is not None else np.zeros(0)
    images = source.held_out(len(labels), 0)
    variables = jax.tree.map(np.asarray, state.ema_variables)
    parts = [slice(first, first + _NUM_TESTED) for first in range(0, len(images), _NUM_TESTED)]
    found = [correct(variables, images[part], labels[part]) for part in parts]
    clean, robust = (float(np.mean(np.concatenate(side))) for side in zip(*found, strict=True))
    shares = {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_at_epsilon": training.settings.classifier.epsilon,
        "num_images": len(images),
    }
    write_sealed(trained.root / "accuracy.json", {"step": int(state.step), "metrics": shares})
    return shares


def open_to_guide(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...]
) -> tuple[Apply, Variables]:
    """Opens the classifier of a run: `apply(variables, x [B, H, W, C] in [-1, 1]) -> logits`."""
    network, state, _ = _restored(path, classes, event_shape)
    return cast(Apply, network.apply), state.ema_variables


def open_to_judge(
    path: Path, classes: tuple[str, ...], event_shape: tuple[int, ...], identity: str = ""
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """Opens the classifier of a run for the evaluation of samples.

    Warns if its training images are not those of the given `Source.identity`.

    Returns:
      `images [N, H, W, C] in [-1, 1] -> (probabilities [N, classes], features of the penultimate
      layer [N, D])`, and a description as values for JSON.
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
    network = experiment.make_network(used, event_shape, len(classes))
    shapes = jax.eval_shape(lambda: experiment.init_state(used, network, event_shape))
    return network, trained.restored(shapes).state, trained


def _epsilon(settings: Settings) -> float:
    return 2.0 * settings.classifier.epsilon  # Pixels are in [0, 1] there.


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)

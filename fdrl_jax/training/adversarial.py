"""Adversarial training on the L2 ball, for classifiers that small perturbations do not fool.

The flow follows a classifier's gradient. The gradient of an ordinary classifier looks like noise,
because tiny perturbations change its prediction. The gradient of a robust classifier points towards
features of the class.

References: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018;
Santurkar et al., "Image Synthesis with a Single (Robust) Classifier", 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fdrl_jax._labels import one_or_nan
from fdrl_jax._precision import at_least_float32
from fdrl_jax.langevin import as_floating, vary_with
from fdrl_jax.method import Metrics
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import Variables
from fdrl_jax.training.steps import TrainStep, from_gradients

Array = jax.Array
Classifier = Callable[[Array], Array]
_TINY = 1e-12


class Attack(NamedTuple):
    """Projected gradient descent within an L2 ball, in units of the images.

    Attributes:
      epsilon: radius of the ball; 0 for no attack.
      step_size: length of a step, in the same units.
      num_steps: number of steps.
      bounds: range of the pixels.
    """

    epsilon: float
    step_size: float
    num_steps: int
    bounds: tuple[float, float] = (-1.0, 1.0)


def l2_attack(epsilon: float, num_steps: int) -> Attack:
    """Returns an attack that can reach every point of the ball, with steps of `2.5 ε / num_steps`.

    Args:
      epsilon: radius of the ball, in units of the images; 0 for no attack.
      num_steps: number of steps; 0 for no attack.

    Reference: Madry et al., arXiv 1706.06083.
    """
    return Attack(epsilon, 2.5 * epsilon / max(num_steps, 1), num_steps)


def perturb(classifier: Classifier, x: Array, labels: Array, attack: Attack) -> Array:
    """Finds nearby images on which a classifier has a large loss (projected gradient descent).

    Each step is `x <- clip(project(x + a g / |g|))`, where `g` is the gradient of the cross-entropy
    and the projection is onto `|x - x_0| <= ε`. The first step starts at `x_0`, not at a random
    point.

    Args:
      classifier: `x [B, ...] -> logits [B, C]`, each row depending only on its own example.
      x: images within the bounds, [B, ...]; integers are converted to float32.
      labels: their classes, [B] integers.
      attack: radius, steps and bounds.

    Returns:
      Images of the shape of `x`. No gradient flows through them.

    Reference: Madry et al., arXiv 1706.06083, section 2.1.
    """

    def loss(x: Array) -> Array:
        return jnp.sum(cross_entropy(classifier(x), labels))

    x = vary_with(as_floating(x), loss)

    def step(_: int, moved: Array) -> Array:
        direction = _scaled(jax.grad(loss)(moved), lambda norm: 1.0 / jnp.maximum(norm, _TINY))
        offset = moved + attack.step_size * direction - x
        inside = _scaled(offset, lambda n: jnp.minimum(1.0, attack.epsilon / jnp.maximum(n, _TINY)))
        return jnp.clip(x + inside, *attack.bounds)

    moved: Array = lax.fori_loop(0, attack.num_steps, step, x) if attack.epsilon else x
    return lax.stop_gradient(moved)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns `-log p(y | x)` per example, [B].

    Args:
      logits: [B, C], converted to at least float32.
      labels: the classes, [B] integers from 0 to C - 1. A traced label that is out of range gives
        NaN.

    Raises:
      ValueError: for labels that are not integers, or are known to be out of range.
    """
    logits = at_least_float32(logits)
    losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return one_or_nan(labels, logits.shape[-1]) * losses


def make_train_step(
    apply: Callable[[Variables, Array], Array],
    *,
    attack: Attack,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, Any, Array, Array], Batch],
    batch_size: int,
    **options: Any,
) -> TrainStep:
    """Builds the training step of a classifier: the cross-entropy on attacked images.

    It is used like the result of `steps.make_train_step` and draws data by the same positions.

    Args:
      apply: `(variables, x [B, ...]) -> logits [B, C]`.
      attack: the attack that the classifier should withstand.
      optimizer: an Optax optimizer.
      draw: as in `steps.make_train_step`, with the classes under "label", [B].
      batch_size: examples per replica.
      **options: other options of `steps.from_gradients`. A network with spectral normalisation
        needs `refresh=networks.update_vectors`.

    Returns:
      A `steps.TrainStep`. Its metrics are "loss" and "accuracy" on the attacked images, and
      "grad_norm".

    Raises:
      ValueError: as for `steps.from_gradients`.
    """

    def loss_and_grads(
        variables: Variables, key: Array, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, Metrics]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = draw(constants.data, host_batch, data_key, positions)
        real = as_floating(batch["real"])
        x = perturb(lambda x: apply(variables, x), real, batch["label"], attack)

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            logits = apply({**variables, "params": params}, x)
            loss = jnp.mean(cross_entropy(logits, batch["label"]))
            correct = jnp.argmax(logits, axis=-1) == batch["label"]
            return loss, {"loss": loss, "accuracy": jnp.mean(correct)}

        result: tuple[Any, Metrics] = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return result

    return from_gradients(loss_and_grads, optimizer=optimizer, batch_size=batch_size, **options)


def _scaled(x: Array, factor: Callable[[Array], Array]) -> Array:
    """Multiplies each example by a function of its L2 norm."""
    axes = tuple(range(1, x.ndim))
    return x * factor(jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)))

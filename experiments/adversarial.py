"""Adversarial training of classifiers on the L2 ball (Madry et al., arXiv 1706.06083).

The flow follows a classifier's gradient. That of an ordinary classifier looks like noise, because
tiny perturbations change its prediction; that of a robust classifier points towards features of the
class (Santurkar et al., 2019).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fdrl_jax.priors import Batch
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import Variables
from fdrl_jax.training.steps import TrainStep, from_gradients

Array = jax.Array
_TINY = 1e-12


class Attack(NamedTuple):
    """Projected gradient descent on images in [-1, 1], within an L2 ball.

    Attributes:
      epsilon: radius of the ball, in units of the images; 0 for no attack.
      num_steps: of the length `2.5 ε / num_steps`, which can reach every point of the ball.
    """

    epsilon: float
    num_steps: int


def perturb(classifier: Callable[[Array], Array], x: Array, labels: Array, attack: Attack) -> Array:
    """Finds images near `x`, [B, ...], on which a classifier has a large loss.

    Each step is `x <- clip(project(x + a g / |g|))`, where `g` is the gradient of the cross-entropy
    and the projection is onto `|x - x_0| <= ε`. The first step starts at `x_0`.
    """
    size = 2.5 * attack.epsilon / max(attack.num_steps, 1)

    def step(_: int, moved: Array) -> Array:
        gradient = jax.grad(lambda x: jnp.sum(cross_entropy(classifier(x), labels)))(moved)
        offset = moved + size * _scaled(gradient, lambda n: 1.0 / jnp.maximum(n, _TINY)) - x
        inside = _scaled(offset, lambda n: jnp.minimum(1.0, attack.epsilon / jnp.maximum(n, _TINY)))
        return jnp.clip(x + inside, -1.0, 1.0)

    moved: Array = lax.fori_loop(0, attack.num_steps, step, x) if attack.epsilon else x
    return lax.stop_gradient(moved)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns `-log p(y | x)` per example, [B], in float32."""
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_train_step(
    apply: Callable[[Variables, Array], Array],
    *,
    attack: Attack,
    max_shift: int,
    draw: Callable[[Any, Any, Array, Array], Batch],
    **options: Any,
) -> TrainStep:
    """Builds the training step of a classifier: the cross-entropy on attacked, shifted images.

    It draws data by the same positions as the step of a density ratio. Options are those of
    `steps.from_gradients`. The metrics are "loss", "accuracy" (both under attack) and "grad_norm".
    """

    def loss_and_grads(
        variables: Variables, key: Array, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, dict[str, Array]]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = draw(constants.data, host_batch, data_key, positions)
        real = batch["real"].astype(jnp.float32)
        if max_shift:
            keys = rng.example_keys(key, rng.Stream.AUGMENTATION, positions)
            real = shifted(keys, real, max_shift)
        x = perturb(lambda x: apply(variables, x), real, batch["label"], attack)

        def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = apply({**variables, "params": params}, x)
            loss = jnp.mean(cross_entropy(logits, batch["label"]))
            correct = jnp.argmax(logits, axis=-1) == batch["label"]
            return loss, {"loss": loss, "accuracy": jnp.mean(correct)}

        result: tuple[Any, dict[str, Array]] = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return result

    return from_gradients(loss_and_grads, **options)


def shifted(keys: Array, images: Array, max_shift: int) -> Array:
    """Shifts each image [B, H, W, C] by up to `max_shift` pixels; the border is repeated."""

    def of_image(own: Array, image: Array) -> Array:
        offset = jax.random.randint(own, (2,), 0, 2 * max_shift + 1, jnp.int32)
        border = (max_shift, max_shift)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="edge")
        return lax.dynamic_slice(padded, (*offset, jnp.int32(0)), image.shape)

    moved: Array = jax.vmap(of_image)(keys, images)
    return moved


def _scaled(x: Array, factor: Callable[[Array], Array]) -> Array:
    """Multiplies each example by a function of its L2 norm."""
    axes = tuple(range(1, x.ndim))
    return x * factor(jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)))

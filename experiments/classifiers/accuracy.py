"""Accuracy of a classifier on clean and on attacked images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax import adversarial
from fdrl_jax.adversarial import Attack

_BATCH_SIZE = 500


def accuracies(
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
) -> tuple[float, float]:
    """Returns the shares of correctly classified images: clean, and under an attack.

    Args:
      apply: `(variables, x [B, ...]) -> logits [B, C]`.
      variables: variables of the classifier.
      images: images within the bounds of the attack, [N, ...].
      labels: their classes, [N].
      attack: the attack for the second share.
    """

    @jax.jit
    def correct(variables: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def logits(x: jax.Array) -> jax.Array:
            return apply(variables, x)

        attacked = adversarial.perturb(logits, x, y, attack)
        clean, robust = (jnp.argmax(logits(z), axis=-1) == y for z in (x, attacked))
        return clean, robust

    parts = [
        correct(variables, images[first : first + _BATCH_SIZE], labels[first : first + _BATCH_SIZE])
        for first in range(0, len(images), _BATCH_SIZE)
    ]
    clean, robust = (float(np.mean(np.concatenate(side))) for side in zip(*parts, strict=True))
    return clean, robust

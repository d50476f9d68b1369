"""The training of a classifier, from a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from experiments.build import parts, training
from experiments.build.parts import Apply, Network
from experiments.build.training import Training
from experiments.errors import UserError
from fdrl_jax import adversarial, parallel
from fdrl_jax.adversarial import Attack
from fdrl_jax.augmentation import shifted
from fdrl_jax.priors import Batch
from fdrl_jax.problem import Constants
from fdrl_jax.state import TrainState
from fdrl_jax.steps import TrainStep

Draw = Callable[[Any, Any, jax.Array, jax.Array], Batch]
_NUM_EVALUATION_STEPS = 20
_SHIFT_KEY = 1_000  # Folded into the key of the data, which folds in the number of a domain.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Training):
    """A classifier that is trained on attacked images.

    Attributes:
      attack: in training; pixels are in [-1, 1].
      evaluation_attack: a stronger one, when robust accuracy is measured.
      held_out_labels: classes of the held-out images.
      make_train_step: builds the train step.
    """

    attack: Attack
    evaluation_attack: Attack
    held_out_labels: np.ndarray
    make_train_step: Callable[[], TrainStep]

    @property
    def output(self) -> str:
        """What the network returns."""
        return "logits"

    def train_step(self) -> TrainStep:
        """Returns the step."""
        return self.make_train_step()


def classifier(config: Mapping[str, Any]) -> ClassifierTraining:
    """Checks a config and builds the training of a classifier on its labelled images.

    Raises:
      UserError: for values that cannot run, or data without labels in memory.
    """
    with parts.explained():
        return _build(parts.checked(config))


def restorable(
    settings: Mapping[str, Any], event_shape: tuple[int, ...], num_classes: int
) -> tuple[Network, TrainState]:
    """Returns the network of a trained classifier, and the shapes of its train state.

    Args:
      settings: the flat config of its run.
      event_shape: shape of an image.
      num_classes: number of its classes.
    """
    network = parts.network(settings, event_shape, num_classes)
    optimizer = parts.optimizer(settings, parts.learning_rate(settings))
    key = jax.random.key(0)  # Of no consequence: only shapes are taken.
    init = functools.partial(parts.initial_state, key, network, optimizer, event_shape)
    return network, jax.eval_shape(init)


def _build(c: dict[str, Any]) -> ClassifierTraining:
    source = parts.source(c)
    if source.labels is None or source.kind != "images":
        raise UserError(
            f"data.name={c['data.name']}: a classifier needs labelled images that fit in "
            "data.in_memory_megabytes: digits, sub-folders as classes, an npz with labels, or "
            "TFDS; and held-out images of no other classes than those of training"
        )
    network = parts.network(c, source.event_shape, len(source.classes))
    shared = training.common(c)
    # From the scale [0, 1], on which such figures are told, to that of images here.
    attack, evaluation_attack = (
        adversarial.l2_attack(2.0 * c["attack.epsilon"], num_steps)
        for num_steps in (c["attack.num_steps"], _NUM_EVALUATION_STEPS)
    )
    make_train_step = functools.partial(
        adversarial.make_train_step,
        cast(Apply, network.apply),
        attack=attack,
        optimizer=shared["optimizer"],
        draw=_augmented(source.draw, c["augment.max_shift"]),
        seed=c["seed"],
        batch_size=parallel.local_batch_size(c["train.batch_size"]),
        ema_rate=c["train.ema_rate"],
        num_micro_batches=c["train.num_micro_batches"],
        axis_name=parallel.AXIS,
    )
    return ClassifierTraining(
        **shared,
        source=source,
        network=network,
        constants=Constants(source.arrays, ()),
        attack=attack,
        evaluation_attack=evaluation_attack,
        held_out_labels=source.labels[1],
        make_train_step=make_train_step,
    )


def _augmented(draw: Draw, max_shift: int) -> Draw:
    def augmented(arrays: Any, host_batch: Any, key: jax.Array, positions: jax.Array) -> Batch:
        batch = draw(arrays, host_batch, key, positions)
        shift_key = jax.random.fold_in(key, _SHIFT_KEY)
        return {**batch, "real": shifted(shift_key, positions, batch["real"], max_shift)}

    return augmented if max_shift else draw

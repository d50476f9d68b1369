"""The training of a classifier, from a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

from experiments.build import parts, training
from experiments.build.parts import Apply
from experiments.build.training import Training
from experiments.errors import UserError
from fdrl_jax import adversarial, parallel
from fdrl_jax.adversarial import Attack
from fdrl_jax.problem import Constants
from fdrl_jax.steps import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Training):
    """A classifier that is trained on attacked images.

    Attributes:
      attack: in training and when robust accuracy is measured; pixels are in [-1, 1].
      make_train_step: builds the train step.
    """

    attack: Attack
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


def _build(c: dict[str, Any]) -> ClassifierTraining:
    source = parts.source(c)
    if not source.classes or source.open_feed is not None:
        raise UserError(
            f"data.name={c['data.name']}: a classifier needs labelled images that fit in "
            "data.in_memory_megabytes: digits, sub-folders as classes, an npz with labels, or TFDS"
        )
    network = parts.network(c, source, len(source.classes))
    shared = training.common(c)
    attack = Attack(
        # From the scale [0, 1], on which such figures are told, to that of images here.
        epsilon=2.0 * c["attack.epsilon"],
        step_size=2.0 * c["attack.step_size"],
        num_steps=c["attack.num_steps"],
    )
    make_train_step = functools.partial(
        adversarial.make_train_step,
        cast(Apply, network.apply),
        attack=attack,
        optimizer=shared["optimizer"],
        draw=source.draw,
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
        make_train_step=make_train_step,
    )

"""The training of a classifier, from its settings."""

from collections.abc import Callable
from typing import Any, cast

import jax

from experiments.build.network import make_network
from experiments.build.training import Training, explained, make_optimizer
from experiments.data import Source
from experiments.errors import UserError
from experiments.settings import Settings
from fdrl_jax import networks
from fdrl_jax.priors import Batch
from fdrl_jax.training import adversarial, parallel
from fdrl_jax.training.adversarial import Attack
from fdrl_jax.training.augmentation import shifted
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import Variables

Apply = Callable[[Variables, jax.Array], jax.Array]
Draw = Callable[[Any, Any, jax.Array, jax.Array], Batch]


def classifier_training(settings: Settings, source: Source) -> Training:
    """Builds the training of a classifier on labelled images, attacked if the settings say so.

    Raises:
      UserError: for settings that cannot run, or data without labels.
    """
    if source.labels is None or source.kind != "images":
        raise UserError(
            f"data.name={settings['data.name']}: a classifier needs labelled images: digits, "
            "sub-folders as classes, an npz with labels, or TFDS. With data.on_error=skip, they "
            "must fit in data.in_memory_megabytes. The classes of the held-out images must occur "
            "in training"
        )
    with explained():
        network = make_network(settings, source.event_shape, len(source.classes))
        train_step = adversarial.make_train_step(
            cast(Apply, network.apply),
            attack=make_attack(settings, settings["attack.num_steps"]),
            optimizer=make_optimizer(settings),
            refresh=networks.update_vectors,
            draw=_augmented(source.draw, settings["augment.max_shift"]),
            batch_size=parallel.local_batch_size(settings["train.batch_size"]),
            ema_rate=settings["train.ema_rate"],
            ema_ramp=settings["train.ema_ramp"],
            num_micro_batches=settings["train.num_micro_batches"],
            axis_name=parallel.AXIS,
        )
    return Training(
        settings=settings,
        source=source,
        network=network,
        output="logits",
        constants=Constants(source.arrays, ()),
        train_step=train_step,
    )


def make_attack(settings: Settings, num_steps: int) -> Attack:
    """Returns the attack of a classifier's settings, on pixels in [-1, 1].

    `attack.epsilon` is on the scale [0, 1], which is usual in the literature.
    """
    return adversarial.l2_attack(2.0 * settings["attack.epsilon"], num_steps)


def _augmented(draw: Draw, max_shift: int) -> Draw:
    def augmented(arrays: Any, host_batch: Any, key: jax.Array, positions: jax.Array) -> Batch:
        batch = draw(arrays, host_batch, key, positions)
        return {**batch, "real": shifted(key, positions, batch["real"], max_shift)}

    return augmented if max_shift else draw

"""Mode train_classifier: a classifier for class-conditional samples and for metrics."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments import build, run
from experiments.build import Training
from experiments.build.classifier import Apply, make_attack
from experiments.command_line import Command
from experiments.files import write_json
from experiments.machine import hardware, memory
from experiments.modes.creation import opened_or_new
from experiments.run import Run
from experiments.training import loop
from fdrl_jax.training import adversarial, parallel
from fdrl_jax.training.state import TrainState, Variables

_NUM_EVALUATION_STEPS = 20  # Steps of the attack, which is stronger than in training.
_BATCH_SIZE = 500


def run_mode(command: Command) -> None:
    """Trains to the last step and prints the accuracy on held-out images."""
    with run.locked_folder(command.folder, creates=command.config is not None):
        opened, wanted, source = opened_or_new(command, "classifier")
        training = build.classifier_training(hardware.prepare(wanted), source)
        memory.check_state(training.state_shapes(), training.constants)
        if opened is None:
            opened = run.create(
                command.folder, "classifier", wanted, source, None, command.text, command.data_dir
            )
        if parallel.is_first_process():
            print(hardware.describe_devices())
            opened.log_command(command.text)
        state = loop.train(training, opened)
        if parallel.is_first_process():
            _evaluate(training, opened, state)


def _evaluate(training: Training, opened: Run, state: TrainState) -> None:
    """Writes and prints the accuracy on held-out images, also under a stronger attack."""
    source, settings = training.source, training.settings
    attack = make_attack(settings, _NUM_EVALUATION_STEPS)
    apply = cast(Apply, training.network.apply)

    @jax.jit
    def correct(variables: Variables, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def is_right(x: jax.Array) -> jax.Array:
            return jnp.argmax(apply(variables, x), axis=-1) == y

        attacked = adversarial.perturb(lambda x: apply(variables, x), x, y, attack)
        return is_right(x), is_right(attacked)

    labels = source.labels.held_out if source.labels is not None else np.zeros(0)
    images = source.held_out(len(labels), 0)
    variables = jax.tree.map(np.asarray, state.ema_variables)
    parts = [slice(first, first + _BATCH_SIZE) for first in range(0, len(images), _BATCH_SIZE)]
    found = [correct(variables, images[part], labels[part]) for part in parts]
    clean, robust = (float(np.mean(np.concatenate(side))) for side in zip(*found, strict=True))
    metrics = {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_at_epsilon": settings["attack.epsilon"],
        "num_images": len(images),
    }
    write_json(opened.root / "accuracy.json", {"step": int(state.step), "metrics": metrics})
    print(f"  accuracy on {len(images):,} held-out images: {100 * clean:.2f}%")
    if settings["attack.epsilon"] and settings["attack.num_steps"]:
        print(f"  under attack, L2 distance {settings['attack.epsilon']:g}: {100 * robust:.2f}%")
    print(f"classifier: --classifier={opened.root}")

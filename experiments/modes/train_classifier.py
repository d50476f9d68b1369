"""Mode train_classifier: a classifier, for features of the evaluation or samples by class."""

import contextlib
from typing import cast

import jax
import numpy as np

from experiments.build.classifier import ClassifierTraining, classifier
from experiments.build.parts import Apply
from experiments.classifiers import accuracies
from experiments.machine.hardware import describe_devices
from experiments.request import Request
from experiments.storage.integrity import digest_arrays
from experiments.storage.workdir import Workdir, write_json
from experiments.training import loop, memory
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def run(request: Request) -> None:
    """Trains to the last step and prints the accuracy on held-out images."""
    workdir, training = Workdir(request.workdir), classifier(request.config)
    memory.check_state(training)
    workdir.create()
    first = parallel.is_first_process()
    with workdir.lock() if first else contextlib.nullcontext():
        if first:
            print(describe_devices())
            source = training.source
            shape = {"classes": list(source.classes), "event_shape": list(source.event_shape)}
            write_json(workdir.classifier, shape)
        train_state = loop.train(training, workdir, request.command)
        if first:
            _evaluate(training, workdir, train_state)


def _evaluate(training: ClassifierTraining, workdir: Workdir, train_state: TrainState) -> None:
    source, attack = training.source, training.evaluation_attack
    labels = training.held_out_labels
    images = source.held_out(len(labels), 0)
    apply = cast(Apply, training.network.apply)
    variables = jax.tree.map(np.asarray, train_state.ema_variables)
    clean, robust = accuracies(apply, variables, images, labels, attack)
    metrics = {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_at_epsilon": attack.epsilon / 2.0,
        "num_images": len(images),
    }
    write_json(workdir.evaluation, {"step": int(train_state.step), "metrics": metrics})
    print(f"  accuracy on {len(images):,} held-out images: {100 * clean:.2f}%")
    if attack.epsilon and training.attack.num_steps:
        print(f"  under attack, L2 distance {attack.epsilon / 2.0:g}: {100 * robust:.2f}%")
    print(f"  digest: {digest_arrays(variables)}")
    print(f"classifier: --classifier={workdir.root}")

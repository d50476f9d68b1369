"""Mode train_classifier: a classifier that withstands attacks, for class-conditional samples."""

import contextlib
from typing import cast

from experiments.build.classifier import ClassifierTraining, classifier
from experiments.build.parts import Apply
from experiments.classifiers import accuracies
from experiments.machine.hardware import describe_devices
from experiments.request import Request
from experiments.storage.workdir import Workdir, read_json, write_json
from experiments.training import loop, memory
from fdrl_jax import parallel
from fdrl_jax.state import TrainState


def run(request: Request) -> None:
    """Trains to the last step and tells how often held-out images are classified rightly."""
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
    clean, robust = accuracies(apply, train_state.ema_variables, images, labels, attack)
    metrics = {
        "clean_accuracy": clean,
        "robust_accuracy": robust,
        "robust_at_epsilon": attack.epsilon / 2.0,
        "num_images": len(images),
    }
    write_json(workdir.evaluation, {"step": int(train_state.step), "metrics": metrics})
    for name, value in read_json(workdir.evaluation)["metrics"].items():
        print(f"  {name:32s} {value:.4g}")
    print(f"classifier: --classifier={workdir.root}")

"""Writes samples of a run to a file; also class-conditional ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import classifier, devices, draw, files, pictures, run
from experiments.command import Command
from experiments.data.decode import to_uint8
from experiments.errors import UserError
from experiments.experiment import Experiment, in_turn, with_class_weights
from experiments.pictures import images, style
from experiments.settings import Flat
from fdrl_jax import compose
from fdrl_jax._checks import nearest
from fdrl_jax.langevin import Potential
from fdrl_jax.priors import Batch
from fdrl_jax.training.state import Variables

ALL = "all"  # The label of samples of all classes in turn.
# `(variables, images [B, H, W, C] in [-1, 1]) -> logits [B, classes]`, and its variables.
Guide = tuple[classifier.Apply, Variables]


def sample(command: Command) -> None:
    """Writes samples to `samples/NAME.npz`, images as uint8, with a record and a picture."""
    opened = run.open_checkpoint(command)
    model, condition = opened.experiment, Flat()
    if command.label:
        model, condition = _conditioned(model, command.label, command.classifier)
    elif command.classifier:
        raise UserError(f"--classifier guides samples of a class: add --class=NAME or {ALL}")
    num = command.num_samples or draw.available(model, model.settings.evaluate.num_samples)
    draw.batch_at(model, np.array([num - 1]))  # Raises an error if no image is stored for it.
    key = run.key_of(opened, num, condition=condition)
    path = opened.run.samples / f"{run.name_of(opened, key)}.npz"
    picture, record = path.with_suffix(".png"), path.with_suffix(".json")
    is_drawn = record.exists() and path.exists()  # The record is written last.
    if is_drawn and files.read_sealed(record)["sha256_of_samples"] != files.sha256_of_file(path):
        raise UserError(f"{path} is damaged; remove it to draw these samples again")
    if not devices.first_process_says(is_drawn):
        num_shown = min(num, pictures.num_shown(model.source))
        drawn = draw.sample_state(model, opened.state, num, num_prior=num_shown)
        if not np.isfinite(drawn.refined).all():
            raise UserError(
                f"the samples of step {opened.step:,} are not finite numbers, so nothing was "
                "written; choose an earlier --checkpoint or a smaller flow.step_size"
            )
        if devices.is_first_process():
            stored = to_uint8(drawn.refined) if model.source.kind == "images" else drawn.refined
            path.parent.mkdir(exist_ok=True)
            digest = files.write_npz(path, {"arr_0": stored})
            shown = drawn.refined[:num_shown]
            labels = np.zeros(0) if model.labels is None else model.labels(np.arange(num_shown))
            if len(np.unique(labels)) > 1:
                figure = images.by_class(shown, labels, model.source.classes)
            else:
                figure = pictures.samples_and_data(model.source, drawn.prior, shown)
            style.save(figure, picture)
            files.write_sealed(record, {"key": key, "sha256_of_samples": digest})
    if devices.is_first_process():
        print(f"{num:,} samples of step {opened.step:,}: {path}")
        print(f"picture: {picture}\nrecord: {record}")


def conditioned(
    model: Experiment, label: str, guide: Guide | None = None, weight: float = 0.0
) -> Experiment:
    """Returns the experiment with samples of a class or of all, guided by a classifier if any."""
    labels = labels_of(label, model.source.classes)
    if guide is None:
        return dataclasses.replace(model, labels=labels)
    apply, variables = guide
    model = with_class_weights(model, lambda x: apply(variables, x))
    problem = model.problem

    def condition(estimator: Potential, arrays: Any, batch: Batch) -> Potential:
        return compose.condition(
            estimator,
            lambda x: apply(arrays, x),
            batch["label"],
            weight,
            output=problem.method.output,
            input_range=(-1.0, 1.0),
        )

    constants = model.constants._replace(classifier=variables)
    problem = problem._replace(condition=condition)
    return dataclasses.replace(model, problem=problem, constants=constants, labels=labels)


def _conditioned(model: Experiment, label: str, folder: str) -> tuple[Experiment, Flat]:
    """Returns the experiment with samples of a class, and what determines them."""
    if not folder:
        if not model.problem.estimator.takes_labels:
            raise UserError(
                f"--class={label} needs --classifier: the folder of a classifier, from "
                "--mode=classifier; or a run that was trained with network.by_class"
            )
        return conditioned(model, label), {"label": label}
    source, weight = model.source, model.settings.condition.weight
    guide = classifier.open_to_guide(Path(folder), source.classes, source.event_shape)
    digest = files.sha256_of_arrays(guide[1])  # Its identity, not its path.
    guided = conditioned(model, label, guide, weight)
    return guided, {"label": label, "classifier": digest, "weight": weight}


def labels_of(name: str, classes: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `positions -> labels` for a class by name or number, or for all in turn."""
    if not classes:
        raise UserError(f"--class={name}: the data have no classes")
    if name == ALL:
        return in_turn(len(classes))
    if name in classes:
        label = classes.index(name)
    elif name.isdecimal() and int(name) < len(classes):
        label = int(name)
    else:
        raise UserError(
            f"--class={name} is not a class of the data{nearest(name, classes) or '.'} Allowed: "
            f"{', '.join(classes)}, a number from 0 to {len(classes) - 1}, or {ALL}"
        )
    return lambda positions: np.full(len(positions), label, np.int32)

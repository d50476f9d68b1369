"""Class-conditional samples: experiments whose samplers are guided by a classifier."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import classifiers
from experiments.build import Experiment
from experiments.errors import UserError
from fdrl_jax import compose
from fdrl_jax._names import nearest
from fdrl_jax.langevin import Potential
from fdrl_jax.priors import Batch

ALL = "all"


def conditioned(experiment: Experiment) -> Experiment:
    """Returns the experiment with the class-conditional samples that its settings ask for.

    Raises:
      UserError: for data without classes, an unknown class, or a classifier that does not fit.
    """
    options, source = experiment.settings, experiment.source
    labels = labels_of(options["condition.label"], source.classes)
    if not options["condition.classifier"]:
        raise UserError(
            f"--class={options['condition.label']} needs --classifier: the workdir of a "
            "classifier, from --mode=train_classifier, or a checkpoint file of the library "
            "robustness"
        )
    path = Path(options["condition.classifier"])
    classifier = classifiers.load(path, source.classes, source.event_shape)
    problem = experiment.problem

    def condition(estimator: Potential, arrays: Any, batch: Batch) -> Potential:
        return compose.condition(
            estimator,
            lambda x: classifier.apply(arrays, x),
            batch["label"],
            options["condition.weight"],
            output=problem.output,
            input_range=classifier.input_range,
        )

    flow = problem.flow._replace(num_refine_steps=options["condition.num_refine_steps"])
    return dataclasses.replace(
        experiment,
        problem=problem._replace(flow=flow, condition=condition),
        constants=experiment.constants._replace(classifier=classifier.variables),
        labels=labels,
    )


def labels_of(name: str, classes: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `positions -> labels` for a class by name or number, or for all in turn.

    Raises:
      UserError: for an unknown class; lists the classes and suggests the closest one.
    """
    if not classes:
        raise UserError(
            f"--class={name}: the data have no classes; sub-folders of the images or the labels of "
            "an npz are classes"
        )
    if name == ALL:
        return lambda positions: (positions % len(classes)).astype(np.int32)
    if name in classes:
        label = classes.index(name)
    elif name.isdecimal() and int(name) < len(classes):
        label = int(name)
    else:
        raise UserError(
            f"--class={name} is not a class of the data{nearest(name, (*classes, ALL)) or '.'} "
            f"Allowed: {', '.join(classes)}, a number from 0 to {len(classes) - 1}, or {ALL}"
        )
    return lambda positions: np.full(len(positions), label, np.int32)

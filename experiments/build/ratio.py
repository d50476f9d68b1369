"""A density ratio and its training, built from settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import divergence_formula, prior
from experiments.build.network import make_network
from experiments.build.training import Model, Training, explained, make_optimizer
from experiments.data import Source
from experiments.prior import FittedPrior
from experiments.settings import Settings, section
from fdrl_jax import bregman, priors
from fdrl_jax.priors import Prior
from fdrl_jax.training import parallel, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem
from fdrl_jax.training.state import TrainState, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Model):
    """A density ratio, with everything that determines its samples except the parameters."""

    problem: Problem  # Estimator, loss, divergence, flow, prior and condition.
    # Arguments of the function of `priors` that builds the prior, as values for JSON and without
    # the arrays of a data-dependent prior.
    prior_arguments: dict[str, Any]
    # Maps positions [B] to labels [B], for class-conditional samples.
    labels: Callable[[np.ndarray], np.ndarray] | None = None

    def sampling_variables(self, train_state: TrainState) -> Variables:
        """Returns the variables used for sampling: the averaged or the latest ones."""
        averaged = self.settings["sample.weights"] == "ema"
        return train_state.ema_variables if averaged else train_state.variables


def experiment(settings: Settings, source: Source, fitted: FittedPrior | None = None) -> Experiment:
    """Builds a density ratio.

    If a data-dependent prior is needed but not given, a placeholder of the same shapes replaces it,
    which suffices to check, compile and time.

    Raises:
      UserError: for combinations of settings that are not possible.
    """
    with explained():
        network = make_network(settings, source.event_shape)
        of_run, prior_arguments = _prior(settings, source, fitted)
        problem = Problem(
            estimator=Estimator.from_network(network),
            bregman=bregman.get(settings["loss.name"]),
            divergence=divergence_formula.parse(settings["loss.divergence"]),
            flow=FlowParams(**section(settings, "flow")),
            prior_sample=of_run.sample,
        )
        bregman.check_pair(problem.bregman, problem.divergence)
        return Experiment(
            settings=settings,
            source=source,
            network=network,
            constants=Constants(source.arrays, of_run.params),
            problem=problem,
            prior_arguments=prior_arguments,
        )


def ratio_training(of: Experiment, num_replicas: int | None = None) -> Training:
    """Builds the training of a density ratio.

    Its batch is split over `num_replicas` devices, by default all.

    Raises:
      UserError: for a batch that does not divide over devices or micro-batches.
    """
    settings, problem = of.settings, of.problem
    with explained():
        train_step = steps.make_train_step(
            problem,
            optimizer=make_optimizer(settings),
            draw=of.source.draw,
            batch_size=parallel.local_batch_size(settings["train.batch_size"], num_replicas),
            ema_rate=settings["train.ema_rate"],
            ema_ramp=settings["train.ema_ramp"],
            gradient_penalty=settings["loss.gradient_penalty"],
            gradient_penalty_fraction=settings["loss.gradient_penalty_fraction"],
            dequantisation=settings["data.dequantisation"],
            num_micro_batches=settings["train.num_micro_batches"],
            axis_name=parallel.AXIS,
        )
    return Training(
        settings=settings,
        source=of.source,
        network=of.network,
        output=problem.output,
        constants=of.constants,
        train_step=train_step,
    )


def _prior(
    settings: Settings, source: Source, fitted: FittedPrior | None
) -> tuple[Prior, dict[str, Any]]:
    """Returns the prior, and the `prior_arguments` of an `Experiment`."""
    name = settings["prior.name"]
    if name == "data_dependent":
        rank = prior.choose_rank(settings["prior.rank"], source.event_shape)
        found = prior.blank(rank, source.event_shape) if fitted is None else fitted
        mean = found.mean.reshape(source.event_shape)
        # Images are clipped to their range (section 5 of the paper); points have no range.
        clip = [-1.0, 1.0] if source.kind == "images" else None
        arguments: dict[str, Any] = {"remainder_scale": found.remainder_scale, "clip": clip}
        return priors.gaussian(mean, found.factor, axis_name=parallel.AXIS, **arguments), arguments
    if name == "source":
        if source.starts is None:
            raise ValueError(
                "prior.name='source' needs paired domains: data.name='pair', or data.source_class "
                "and data.target_class"
            )
        arguments = {"field": "source", "dequantisation": settings["data.dequantisation"]}
        return priors.batch(**arguments), arguments
    shape = list(source.event_shape)
    if name == "uniform":
        arguments = {"event_shape": shape}
        return priors.uniform(**arguments), arguments
    arguments = {"event_shape": shape, "scale": settings["prior.scale"]}
    return priors.normal(**arguments), arguments

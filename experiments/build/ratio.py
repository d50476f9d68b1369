"""A density ratio and its training, built from settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import divergence_formula, prior
from experiments.build.network import Network, make_network
from experiments.build.training import Training, explained, make_optimizer, state_shapes
from experiments.data import Source
from experiments.prior import FittedPrior
from experiments.settings import Settings
from fdrl_jax import bregman, parallel, priors, steps
from fdrl_jax.priors import Prior
from fdrl_jax.problem import Constants, Estimator, FlowParams, Problem
from fdrl_jax.state import TrainState, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A density ratio, with everything that determines its samples except the parameters.

    The problem has estimator, loss, divergence, flow, prior and condition, and the constants are
    arrays of data, prior and classifier. For class-conditional samples, `labels` maps positions [B]
    to labels [B].
    """

    settings: Settings
    source: Source
    network: Network
    problem: Problem
    constants: Constants
    labels: Callable[[np.ndarray], np.ndarray] | None = None

    def state_shapes(self) -> TrainState:
        """Returns shapes and dtypes of the train state: the template of a checkpoint."""
        return state_shapes(self.settings, self.network, self.source.event_shape)

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
        of_run = _prior(settings, source, fitted)
        problem = Problem(
            estimator=Estimator.from_network(network),
            bregman=bregman.get(settings["loss.name"]),
            divergence=divergence_formula.parse(settings["loss.divergence"]),
            flow=FlowParams(
                num_steps=settings["flow.num_steps"],
                step_size=settings["flow.step_size"],
                noise_scale=settings["flow.noise_scale"],
                num_refine_steps=settings["flow.num_refine_steps"],
                step_size_decay=settings["flow.step_size_decay"],
            ),
            prior_sample=of_run.sample,
        )
        bregman.check_pair(problem.bregman, problem.divergence)
        return Experiment(
            settings=settings,
            source=source,
            network=network,
            problem=problem,
            constants=Constants(source.arrays, of_run.params),
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


def prior_arguments(
    settings: Settings, source: Source, fitted: FittedPrior | None
) -> dict[str, Any]:
    """Returns the arguments of the function of `priors` that builds a prior, as values for JSON.

    The arrays of a data-dependent prior are not among them.
    """
    if settings["prior.name"] == "normal":
        return {"event_shape": list(source.event_shape), "scale": settings["prior.scale"]}
    if settings["prior.name"] == "uniform":
        return {"event_shape": list(source.event_shape)}
    if settings["prior.name"] == "source":
        return {"field": "source", "dequantisation": settings["data.dequantisation"]}
    return {
        "remainder_scale": 0.0 if fitted is None else fitted.remainder_scale,
        # Images are clipped to their range (section 5 of the paper); points have no range.
        "clip": [-1.0, 1.0] if source.kind == "images" else None,
    }


def _prior(settings: Settings, source: Source, fitted: FittedPrior | None) -> Prior:
    name = settings["prior.name"]
    if name == "data_dependent":
        rank = prior.choose_rank(settings["prior.rank"], source.event_shape)
        found = prior.blank(rank, source.event_shape) if fitted is None else fitted
        mean = found.mean.reshape(source.event_shape)
        arguments = prior_arguments(settings, source, found)
        return priors.gaussian(mean, found.factor, axis_name=parallel.AXIS, **arguments)
    if name == "source" and source.starts is None:
        raise ValueError(
            "prior.name='source' needs paired domains: data.name='pair', or data.source_class and "
            "data.target_class"
        )
    make: dict[str, Callable[..., Prior]] = {
        "normal": priors.normal,
        "uniform": priors.uniform,
        "source": priors.batch,
    }
    return make[name](**prior_arguments(settings, source, fitted))

"""From a config to typed objects: the only reader of the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import divergence_formula
from experiments.build import fitted_prior, parts, training
from experiments.build.options import Conditioning, Curve, Sampling
from experiments.build.training import Training
from experiments.data import Source
from fdrl_jax import bregman, parallel, priors, steps
from fdrl_jax.priors import Prior
from fdrl_jax.problem import Constants, Estimator, FlowParams, Problem
from fdrl_jax.state import TrainState, Variables
from fdrl_jax.steps import TrainStep

__all__ = ["Experiment", "Training", "experiment"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Training):
    """A density ratio that is learnt, with what the sampler and the evaluation need.

    Attributes:
      make_train_step: builds the train step, from the problem of the experiment, or one with
        another flow.
      inception_weights: files of weights by the protocol of evaluation that they are for.
      inception_score: whether that is computed as well.
      labels: `positions [B] -> labels [B]` of class-conditional samples; `None` for others.
    """

    problem: Problem
    make_train_step: Callable[[Problem], TrainStep]
    snapshot_samples: int
    evaluation_samples: int
    sampling_batch_size: int
    sampling: Sampling
    judged_samples: int
    conditioning: Conditioning
    curve: Curve
    inception_weights: dict[str, str]
    inception_score: bool
    labels: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def output(self) -> str:
        """What the network returns."""
        return self.problem.output

    def train_step(self) -> TrainStep:
        """Returns the step for the problem of the experiment."""
        return self.make_train_step(self.problem)

    def sampling_variables(self, train_state: TrainState) -> Variables:
        """Returns the variables that samples follow from: the averaged ones or the newest."""
        averaged = self.sampling.weights == "ema"
        return train_state.ema_variables if averaged else train_state.variables


def experiment(
    config: Mapping[str, Any], prior_file: Path | None = None, *, fit_prior: bool = True
) -> Experiment:
    """Checks a config and builds all that it describes.

    Args:
      config: nested keys and values.
      prior_file: where a data-dependent prior is kept once it is fitted.
      fit_prior: `False` puts zeros in its place, for a look at shapes and times.

    Raises:
      UserError: for values, or combinations of values, that cannot run.
    """
    with parts.explained():
        return _build(parts.checked(config), prior_file, fit_prior)


def _build(c: dict[str, Any], prior_file: Path | None, fit_prior: bool) -> Experiment:
    source = parts.source(c)
    network = parts.network(c, source.event_shape)
    prior = _prior(c, source, prior_file, fit_prior)
    shared = training.common(c)
    problem = Problem(
        estimator=Estimator.from_network(network),
        bregman=bregman.get(c["loss.name"]),
        divergence=divergence_formula.parse(c["loss.divergence"]),
        flow=FlowParams(
            num_steps=c["flow.num_steps"],
            step_size=c["flow.step_size"],
            noise_scale=c["flow.noise_scale"],
            num_refine_steps=c["flow.num_refine_steps"],
            step_size_decay=c["flow.step_size_decay"],
        ),
        prior_sample=prior.sample,
    )
    make_train_step = functools.partial(
        steps.make_train_step,
        optimizer=shared["optimizer"],
        draw=source.draw,
        batch_size=parallel.local_batch_size(c["train.batch_size"]),
        ema_rate=c["train.ema_rate"],
        dequantisation=c["data.dequantisation"],
        num_micro_batches=c["train.num_micro_batches"],
        axis_name=parallel.AXIS,
    )
    make_train_step(problem)  # Explains a loss and a divergence that do not go together.
    return Experiment(
        **shared,
        source=source,
        network=network,
        problem=problem,
        constants=Constants(source.arrays, prior.params),
        make_train_step=make_train_step,
        snapshot_samples=c["snapshot.num_samples"],
        evaluation_samples=c["evaluate.num_samples"],
        sampling_batch_size=c["evaluate.batch_size"],
        sampling=Sampling(**parts.section(c, "sample")),
        judged_samples=c["evaluate.num_judged_samples"],
        conditioning=Conditioning(**parts.section(c, "condition")),
        curve=Curve(c["curve.over"], tuple(c["curve.lengths"])),
        inception_weights=_given(
            standard=c["evaluate.inception_weights"], fid_legacy_fdrl=c["evaluate.legacy_weights"]
        ),
        inception_score=c["evaluate.inception_score"],
    )


def _given(**files: str) -> dict[str, str]:
    return {name: file for name, file in files.items() if file}


def _prior(c: dict[str, Any], source: Source, file: Path | None, fit: bool) -> Prior:
    if c["prior.name"] == "normal":
        return priors.normal(source.event_shape, c["prior.scale"])
    if c["prior.name"] == "uniform":
        return priors.uniform(source.event_shape)
    if c["prior.name"] == "source":
        if source.starts is None:
            raise ValueError(
                "prior.name='source' needs paired domains: data.name='pair', or data.source_class "
                "and data.target_class"
            )
        return priors.batch("source", c["data.dequantisation"])
    rank = fitted_prior.choose_rank(c["prior.rank"], source.event_shape)
    if fit:
        fitted = fitted_prior.load_or_fit(source, rank, c["prior.jitter"], file)
    else:
        fitted = fitted_prior.blank(source, rank)
    # Images are clipped to their range (method section 6); points have none.
    clip = (-1.0, 1.0) if source.kind == "images" else None
    mean = fitted.mean.reshape(source.event_shape)
    return priors.gaussian(mean, fitted.factor, remainder_scale=fitted.remainder_scale, clip=clip)

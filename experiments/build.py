"""From a config to typed objects: the only reader of the config."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from experiments import data, fitted_prior, schema
from experiments.data import DataOptions, Source
from experiments.data.feed import Feed
from experiments.errors import UserError
from experiments.options import Cadence, Curve, Guard, Loggers, Sampling
from fdrl_jax import bregman, divergences, networks, parallel, priors, rng, state, steps
from fdrl_jax.priors import Prior
from fdrl_jax.problem import Constants, Estimator, FlowParams, Problem
from fdrl_jax.state import TrainState, Variables
from fdrl_jax.steps import TrainStep

Network = networks.MLP | networks.ResNet
Apply = Callable[[Variables, jax.Array], jax.Array]


class Experiment(NamedTuple):
    """A run, resolved: what the loop, the sampler and the evaluation need, and no config.

    Attributes:
      settings: the flat config, for the record and for comparison with a checkpoint's.
      make_train_step: builds the per-replica step, which names the axis of `parallel`; from the
        problem of the experiment, or one with another flow.
      schedule: learning rate as a function of the step.
      inception_weights: files of weights by the protocol of evaluation that they are for.
      inception_score: whether that is computed as well.
      may_lengthen: whether the number of steps may change when the run goes on.
    """

    settings: dict[str, Any]
    seed: int
    source: Source
    network: Network
    problem: Problem
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    constants: Constants
    make_train_step: Callable[[Problem], TrainStep]
    num_steps: int
    batch_size: int
    steps_per_dispatch: int
    num_checkpoints: int
    snapshot_samples: int
    evaluation_samples: int
    sampling_batch_size: int
    inception_weights: dict[str, str]
    inception_score: bool
    sampling: Sampling
    judged_samples: int
    curve: Curve
    cadence: Cadence
    guard: Guard
    loggers: Loggers
    may_lengthen: bool

    def init_state(self) -> TrainState:
        """Returns the state before the first step; it follows from the seed."""
        key = rng.stream_key(jax.random.key(self.seed), rng.Stream.INIT)
        example = jnp.zeros((1, *self.source.event_shape))
        return state.create(dict(jax.jit(self.network.init)(key, example)), self.optimizer)

    def sampling_variables(self, train_state: TrainState) -> Variables:
        """Returns the variables that samples follow from: the averaged ones or the newest."""
        averaged = self.sampling.weights == "ema"
        return train_state.ema_variables if averaged else train_state.variables

    def data_state(self, num_batches: int) -> dict[str, Any]:
        """Returns where the data stand after so many batches, and what fixes their order."""
        return {"num_batches": num_batches, "identity": self.source.identity}

    def open_feed(self, num_batches: int) -> Feed:
        """Opens the host batches of this process after the first few; none if data need none."""
        if self.source.open_feed is None:
            return Feed(None)
        size = self.batch_size // jax.process_count()
        return self.source.open_feed(self.seed, size, num_batches, self.steps_per_dispatch)


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
    schema.check(config)
    c = schema.as_floats(schema.flatten(config))
    try:
        return _build(c, prior_file, fit_prior)
    except ValueError as error:
        # The library explains bad combinations (a loss with a divergence, a batch with devices).
        raise UserError(f"config: {error}") from error


def _build(c: dict[str, Any], prior_file: Path | None, fit_prior: bool) -> Experiment:
    c["data.dir"] = c["data.dir"] or os.environ.get("FDRL_DATA_DIR", "")
    source = data.load(DataOptions(**_section(c, "data")))
    network = _network(c, source)
    prior = _prior(c, source, prior_file, fit_prior)
    schedule = _schedule(c)
    optimizer = _optimizer(c, schedule)
    problem = Problem(
        estimator=Estimator(cast(Apply, network.apply), networks.update_vectors),
        bregman=bregman.get(c["loss.name"]),
        divergence=divergences.get(c["loss.divergence"]),
        flow=FlowParams(
            num_steps=c["flow.num_steps"],
            step_size=c["flow.step_size"],
            noise_scale=c["flow.noise_scale"],
            num_refine_steps=c["flow.num_refine_steps"],
        ),
        prior_sample=prior.sample,
    )
    make_train_step = functools.partial(
        steps.make_train_step,
        optimizer=optimizer,
        draw=source.draw,
        seed=c["seed"],
        batch_size=parallel.local_batch_size(c["train.batch_size"]),
        ema_rate=c["train.ema_rate"],
        dequantisation=c["data.dequantisation"],
        num_micro_batches=c["train.num_micro_batches"],
        axis_name=parallel.AXIS,
    )
    make_train_step(problem)  # Explains a loss and a divergence that do not go together.
    return Experiment(
        # Through JSON, so that it equals what a checkpoint gives back.
        settings=json.loads(json.dumps(c)),
        seed=c["seed"],
        source=source,
        network=network,
        problem=problem,
        optimizer=optimizer,
        schedule=schedule,
        constants=Constants(source.arrays, prior.params),
        make_train_step=make_train_step,
        num_steps=c["train.num_steps"],
        batch_size=c["train.batch_size"],
        steps_per_dispatch=c["train.steps_per_dispatch"],
        num_checkpoints=c["checkpoint.keep"],
        snapshot_samples=c["snapshot.num_samples"],
        evaluation_samples=c["evaluate.num_samples"],
        sampling_batch_size=c["evaluate.batch_size"],
        sampling=Sampling(**_section(c, "sample")),
        inception_weights=_given(
            standard=c["evaluate.inception_weights"], fid_legacy_fdrl=c["evaluate.legacy_weights"]
        ),
        inception_score=c["evaluate.inception_score"],
        judged_samples=c["evaluate.num_judged_samples"],
        curve=Curve(c["curve.over"], tuple(c["curve.lengths"])),
        cadence=Cadence(
            log_steps=c["log.every_steps"],
            checkpoint_steps=c["checkpoint.every_steps"],
            snapshot_steps=c["snapshot.every_steps"],
            evaluate_steps=c["evaluate.every_steps"],
        ),
        guard=Guard(
            c["train.max_log_ratio"],
            c["train.max_ratio"],
            c["train.on_divergence"],
            c["train.rollback_lr_factor"],
            c["train.max_rollbacks"],
        ),
        loggers=Loggers(c["log.tensorboard"], c["log.wandb"]),
        may_lengthen=c["optimizer.schedule"] != "cosine",
    )


def _network(c: dict[str, Any], source: Source) -> Network:
    name, dtype, spectral_norm = c["network.name"], c["precision"], c["network.spectral_norm"]
    kind = source.kind
    if name == "auto":
        name = "mlp" if kind == "points" else _network_for(max(source.event_shape[:2]))
    if (name == "mlp") != (kind == "points"):
        fitting = "'mlp'" if kind == "points" else "a residual network such as 'resnet'"
        raise ValueError(f"network.name={name!r} does not fit {kind}; use {fitting}")
    if name == "mlp":
        return networks.MLP(tuple(c["network.hidden_sizes"]), spectral_norm, dtype)
    if name != "resnet":
        spec, width = name, c["network.width"] or None
    elif c["network.blocks"] and c["network.width"]:
        blocks = tuple(tuple(block) for block in c["network.blocks"])
        spec = networks.ResNetSpec(c["network.width"], blocks, c["network.attention_after"])
        width = None
    else:
        raise ValueError("network.name='resnet' needs network.width and network.blocks")
    return networks.resnet(
        spec,
        width=width,
        spectral_norm=spectral_norm,
        attention=c["network.attention"],
        dtype=dtype,
        remat=c["network.remat"],
    )


def _network_for(image_size: int) -> str:
    """Returns the paper's network for the nearest of its sizes, 32, 64 and 128."""
    return "resnet32" if image_size <= 48 else "resnet64" if image_size <= 96 else "resnet128"


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


def _given(**files: str) -> dict[str, str]:
    return {name: file for name, file in files.items() if file}


def _section(c: dict[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): c[key] for key in c if key.startswith(prefix)}


def _schedule(c: dict[str, Any]) -> optax.Schedule:
    rate = c["optimizer.learning_rate"]
    if c["optimizer.schedule"] == "cosine":
        return optax.cosine_decay_schedule(rate, c["train.num_steps"])
    if c["optimizer.schedule"] == "piecewise":
        factors = dict.fromkeys(c["optimizer.boundaries"], c["optimizer.decay"])
        return optax.piecewise_constant_schedule(rate, factors)
    return optax.constant_schedule(rate)


def _optimizer(c: dict[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    adam = optax.adam(schedule, b1=c["optimizer.b1"], b2=c["optimizer.b2"])
    if c["optimizer.clip_norm"] > 0:
        return optax.chain(optax.clip_by_global_norm(c["optimizer.clip_norm"]), adam)
    return adam

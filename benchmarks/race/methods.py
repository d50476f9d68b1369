"""The contestants: FDRL as it ships, and flow matching from noise.

Times run from the data at `t = 0` to the start at `t = 1`: `x_t = (1 - t) x + t ε`, with the
velocity `v = ε - x`. Reference: Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023.
"""

import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.race.networks import UNet
from experiments import devices, experiment, prior, settings
from experiments.data import Source, load
from experiments.experiment import Training
from experiments.settings import Settings
from fdrl_jax import priors
from fdrl_jax.priors import Batch, Prior
from fdrl_jax.training import rng, samplers, steps
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import Variables

Array = jax.Array
# `(key, variables, constants, batch) -> images [B, H, W, C]`; a batch has positions, [B].
Sampler = Callable[[Array, Variables, Constants, Batch], Array]

CONFIGS = {"mnist": "mnist:short", "cifar10": "cifar10_small:short"}  # The recipes that ship.
METHODS = ("fdrl", "flow_matching")


class Entry(NamedTuple):
    """A way to draw samples of a contestant, which has rows of its own."""

    method: str  # One of `METHODS`, or "prior".
    unit: str  # What is counted per sample: "gradients" of the network, or its "evaluations".
    number: int
    sampler: Sampler


class Contestant(NamedTuple):
    """A method that is ready to train."""

    make: Callable[[int], Training]  # Maps a number of training steps to the training.
    fit_seconds: float  # CPU seconds that its prior took, which count as training.
    entries: Callable[[Training], list[Entry]]


class Rival(NamedTuple):
    """Settings of flow matching."""

    width: int = 32
    num_blocks: int = 2
    batch_size: int = 32
    learning_rate: float = 4e-3
    ema_rate: float = 0.999
    stop: float = 0.1  # Time at which one step of Tweedie's formula replaces the integration.
    num_evaluations: tuple[int, ...] = (9, 19, 37)  # Evaluations of the network per sample.


def recipe(task: str) -> Any:  # The config of FDRL that ships.
    name, _, variants = CONFIGS[task].partition(":")
    return importlib.import_module(f"configs.{name}").get_config(variants)


def build(method: str, task: str, data: Path, seed: int, changes: Mapping[str, Any]) -> Contestant:
    """Builds a contestant on an .npz of images, with changes of the settings of `Rival`."""
    config = recipe(task)
    config.data.name, config.data.dir, config.seed = "npz", str(data), seed
    wanted = settings.from_config(config.to_dict())
    source = load(wanted.data)
    wanted = devices.resolved(experiment.for_shape(wanted, source.event_shape))
    if method == "fdrl":
        if changes:
            raise ValueError(f"fdrl is raced as it ships, without {', '.join(changes)}")
        return _fdrl(wanted, source)
    usual = Rival(width=32 if source.event_shape[-1] == 1 else 48)
    if unknown := sorted(changes.keys() - set(Rival._fields)):
        raise ValueError(f"{', '.join(unknown)}: allowed are {', '.join(Rival._fields)}")
    return _flow_matching(wanted, source, usual._replace(**changes))


def _fdrl(wanted: Settings, source: Source) -> Contestant:
    """Flow-guided density ratio learning, and the prior with its denoiser but without the flow."""
    started = time.process_time()
    fitted = prior.fit_to(source, wanted.prior, None)
    fit_seconds = time.process_time() - started

    def make(num_steps: int) -> Training:
        return experiment.build(_of_length(wanted, num_steps), source, fitted)

    def entries(model: Any) -> list[Entry]:
        problem = model.problem
        num_steps = problem.method.num_steps + problem.method.num_refine_steps
        refined = samplers.make_sampler(problem)
        start = samplers.make_sampler(problem, ("prior",))

        def flowed(*arguments: Any) -> Array:
            return refined(*arguments)["refined"]

        def denoised(key: Array, variables: Variables, *rest: Any) -> Array:
            x0 = start(key, variables, *rest)["prior"]
            return problem.denoise(variables, x0) if problem.denoise else x0

        flow = Entry("fdrl", "gradients", num_steps, flowed)
        return [Entry("prior", "evaluations", 0, denoised), flow]

    return Contestant(make, fit_seconds, entries)


def _flow_matching(wanted: Settings, source: Source, rival: Rival) -> Contestant:
    start = priors.normal(source.event_shape)
    change, rate = dataclasses.replace, rival.learning_rate
    optimizer = change(wanted.optimizer, learning_rate=rate, b1=0.9, clip_norm=1.0)
    length = change(wanted.train, batch_size=rival.batch_size, ema_rate=rival.ema_rate)
    of_rival = change(wanted, optimizer=optimizer, train=length)
    network = UNet(rival.width, rival.num_blocks, jnp.dtype(wanted.precision))

    def loss_and_grads(
        variables: Variables, key: Array, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, dict[str, Array]]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = source.draw(constants.data, host_batch, data_key, positions)
        keys = rng.example_keys(key, rng.Stream.PRIOR, positions)
        x1 = start.sample(constants.prior, keys, batch)
        step_key = jax.random.fold_in(rng.stream_key(key, rng.Stream.FLOW), positions[0])
        t = jax.nn.sigmoid(jax.random.normal(step_key, positions.shape))  # Logit-normal times.
        velocity = x1 - batch["real"]
        x = batch["real"] + t[:, None, None, None] * velocity

        def loss(params: Any) -> Array:
            return jnp.mean((network.apply({"params": params}, x, t) - velocity) ** 2)

        value, grads = jax.value_and_grad(loss)(variables["params"])
        return grads, {"loss": value}

    def make(num_steps: int) -> Training:
        used = _of_length(of_rival, num_steps)

        def make_step() -> steps.TrainStep:
            options = experiment.step_options(used)
            return steps.from_gradients(loss_and_grads, **options)

        arrays: Any = Constants(source.arrays, start.params)
        of_network: Any = {"network": network, "output": "velocity", "make_step": make_step}
        return Training(settings=used, source=source, constants=arrays, **of_network)

    found = [
        Entry(
            "flow_matching", "evaluations", num, integrator(network.apply, start, num, rival.stop)
        )
        for num in rival.num_evaluations
    ]
    return Contestant(make, 0.0, lambda training: found)


def integrator(
    velocity: Callable[..., Array], start: Prior, num_evaluations: int, stop: float
) -> Sampler:
    """Returns the midpoint rule down to `stop`, then one step to the expected image (Tweedie)."""
    num_steps, rest = divmod(num_evaluations - 1, 2)
    if num_steps < 1 or rest:
        raise ValueError(f"num_evaluations must be odd and at least 3, got {num_evaluations}")
    length = (1.0 - stop) / num_steps

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> Array:
        keys = rng.example_keys(key, rng.Stream.PRIOR, batch["position"])

        def at(x: Array, t: Any) -> Array:
            return velocity(variables, x, jnp.full((len(x),), t))

        def step(k: Array, x: Array) -> Array:
            t = 1.0 - k * length
            middle = x - 0.5 * length * at(x, t)
            return x - length * at(middle, t - 0.5 * length)

        x = jax.lax.fori_loop(0, num_steps, step, start.sample(constants.prior, keys, batch))
        return x - stop * at(x, stop)

    return sample


def _of_length(wanted: Settings, num_steps: int) -> Settings:
    return dataclasses.replace(wanted, train=dataclasses.replace(wanted.train, num_steps=num_steps))

"""Inputs of the training loop, for density ratios and for classifiers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
import optax

from experiments.build.network import Network
from experiments.build.placement import on_devices, shapes_on_device
from experiments.build.rollbacks import after_rollbacks
from experiments.data import Source, Take
from experiments.errors import UserError
from experiments.settings import Settings
from fdrl_jax.training import parallel, rng, state, steps
from fdrl_jax.training.problem import Constants
from fdrl_jax.training.state import TrainState
from fdrl_jax.training.steps import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network with its settings, its data, and the arrays that steps and samplers read."""

    settings: Settings
    source: Source
    network: Network
    constants: Constants

    @property
    def root_key(self) -> jax.Array:
        return rng.root_key(self.settings["seed"])

    def init_state(self) -> TrainState:
        """Returns the state before the first step, which depends only on the seed."""
        return init_state(self.settings, self.network, self.source.event_shape)

    def state_shapes(self) -> TrainState:
        """Returns shapes and dtypes of the state: the template of a checkpoint."""
        return jax.eval_shape(self.init_state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Model):
    """The training of a network."""

    output: str  # What the network returns: "ratio", "log_ratio" or "logits".
    train_step: TrainStep  # The per-replica step, which averages over the axis of `parallel`.

    def repeated_step(self) -> Callable[..., Any]:
        """Returns the function of one replica for up to `train.steps_per_dispatch` steps."""
        return steps.repeat_steps(self.train_step, self.settings["train.steps_per_dispatch"])

    def argument_shapes(self, num_replicas: int) -> tuple[Any, ...]:
        """Returns shapes and dtypes of the arguments of `repeated_step`, for one replica."""
        host_batches = None  # The data are on the device.
        if self.source.open_feed is not None:
            size = self.settings["train.batch_size"] // num_replicas
            shape = (self.settings["train.steps_per_dispatch"], size, *self.source.event_shape)
            names = ("real",) if self.source.starts is None else ("real", "source")
            host_batches = {name: jax.ShapeDtypeStruct(shape, np.uint8) for name in names}
        key, scalar = jax.eval_shape(lambda: (self.root_key, np.int32(0)))
        constants = shapes_on_device(self.constants, num_replicas)
        return key, self.state_shapes(), constants, host_batches, scalar, scalar

    def blank_arguments(self, host_batches: Any, count: int) -> tuple[Any, ...]:
        """Returns arguments of the mapped `repeated_step` for compiling and timing it.

        The variables are zeros. The step takes over the buffers of the state.
        """
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self.state_shapes())
        copied = parallel.replicate(zeros)
        return self.root_key, copied, on_devices(self.constants), host_batches, count, 0

    def open_feed(self, num_batches: int) -> AbstractContextManager[Take]:
        """Opens the host batches of this process, after the first `num_batches`."""
        if self.source.open_feed is None:
            return contextlib.nullcontext(lambda count: None)
        size = self.settings["train.batch_size"] // jax.process_count()
        dispatch = self.settings["train.steps_per_dispatch"]
        return self.source.open_feed(self.settings["seed"], size, num_batches, dispatch)


def init_state(settings: Settings, network: Network, event_shape: tuple[int, ...]) -> TrainState:
    """Returns the state of a network before its first step."""
    key = rng.stream_key(rng.root_key(settings["seed"]), rng.Stream.INIT)
    variables = jax.jit(network.init)(key, np.zeros((1, *event_shape), np.float32))
    return state.create(dict(variables), make_optimizer(settings))


def learning_rate(settings: Settings) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    rate, warmup = settings["optimizer.learning_rate"], settings["optimizer.warmup_steps"]
    if settings["optimizer.schedule"] == "cosine":
        schedule = optax.cosine_decay_schedule(rate, settings["train.num_steps"])
    elif settings["optimizer.schedule"] == "piecewise":
        factors = dict.fromkeys(settings["optimizer.boundaries"], settings["optimizer.decay"])
        schedule = optax.piecewise_constant_schedule(rate, factors)
    else:
        schedule = optax.constant_schedule(rate)
    if not warmup:
        return schedule
    return lambda step: schedule(step) * jax.numpy.minimum(1.0, (step + 1) / warmup)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns Adam, with gradient clipping if it is set, and updates scaled by rollbacks."""
    adam = optax.adam(
        learning_rate(settings), b1=settings["optimizer.b1"], b2=settings["optimizer.b2"]
    )
    if settings["optimizer.clip_norm"] > 0:
        adam = optax.chain(optax.clip_by_global_norm(settings["optimizer.clip_norm"]), adam)
    return after_rollbacks(adam)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the library's ValueErrors into errors of the user.

    They explain invalid combinations, such as of loss and divergence, or of batch size and devices.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"config: {error}") from error

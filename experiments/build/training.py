"""What the training loop is told of any run."""

import abc
import dataclasses
import json
from typing import Any

import jax
import optax

from experiments.build import parts
from experiments.build.options import Cadence, Guard, Loggers
from experiments.build.parts import Network
from experiments.data import Source
from experiments.data.feed import Feed
from experiments.machine import hardware
from fdrl_jax import rng
from fdrl_jax.problem import Constants
from fdrl_jax.state import TrainState
from fdrl_jax.steps import TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(abc.ABC):
    """A network that is trained on data, resolved: what the loop needs, and no config.

    Attributes:
      settings: the flat config, for the record and for comparison with a checkpoint's.
      schedule: learning rate as a function of the step.
      may_lengthen: whether the number of steps may change when the run goes on.
    """

    settings: dict[str, Any]
    seed: int
    source: Source
    network: Network
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    constants: Constants
    num_steps: int
    batch_size: int
    steps_per_dispatch: int
    num_checkpoints: int
    cadence: Cadence
    guard: Guard
    loggers: Loggers
    may_lengthen: bool

    @property
    @abc.abstractmethod
    def output(self) -> str:
        """What the network returns: "ratio", "log_ratio" or "logits"."""

    @abc.abstractmethod
    def train_step(self) -> TrainStep:
        """Returns the per-replica step, which names the axis of `parallel`."""

    def init_state(self) -> TrainState:
        """Returns the state before the first step; it follows from the seed."""
        key = rng.stream_key(self.key, rng.Stream.INIT)
        return parts.initial_state(key, self.network, self.optimizer, self.source.event_shape)

    @property
    def key(self) -> jax.Array:
        """The root key of the run."""
        return rng.root_key(self.seed)

    def data_state(self, num_batches: int) -> dict[str, Any]:
        """Returns where the data stand after so many batches, and what fixes their order."""
        return {"num_batches": num_batches, "identity": self.source.identity}

    def open_feed(self, num_batches: int) -> Feed:
        """Opens the host batches of this process after the first few; none if data need none."""
        if self.source.open_feed is None:
            return Feed(None)
        size = self.batch_size // jax.process_count()
        return self.source.open_feed(self.seed, size, num_batches, self.steps_per_dispatch)


def common(c: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `Training` that the config alone determines.

    The process multiplies as the run asks for from now on; what else it opens, a classifier that
    guides the samples, does not change that.
    """
    hardware.set_matmul_precision(c["precision"])
    schedule = parts.learning_rate(c)
    return {
        # Through JSON, so that it equals what a checkpoint gives back.
        "settings": json.loads(json.dumps(c)),
        "seed": c["seed"],
        "optimizer": parts.optimizer(c, schedule),
        "schedule": schedule,
        "num_steps": c["train.num_steps"],
        "batch_size": c["train.batch_size"],
        "steps_per_dispatch": c["train.steps_per_dispatch"],
        "num_checkpoints": c["checkpoint.keep"],
        "cadence": Cadence(
            log_steps=c["log.every_steps"],
            checkpoint_steps=c["checkpoint.every_steps"],
            snapshot_steps=c["snapshot.every_steps"],
            evaluate_steps=c["evaluate.every_steps"],
        ),
        "guard": Guard(
            c["train.max_log_ratio"],
            c["train.max_ratio"],
            c["train.on_divergence"],
            c["train.rollback_lr_factor"],
            c["train.max_rollbacks"],
        ),
        "loggers": Loggers(c["log.tensorboard"], c["log.wandb"]),
        "may_lengthen": c["optimizer.schedule"] != "cosine",
    }

"""Typed groups of settings that `build` hands to the parts of the program."""

from typing import NamedTuple


class Cadence(NamedTuple):
    """After how many steps the loop does what; 0 for never."""

    log_steps: int
    checkpoint_steps: int
    snapshot_steps: int
    evaluate_steps: int


class Guard(NamedTuple):
    """Limits of mean network outputs beyond which a run counts as diverged, and what happens then.

    Attributes:
      on_divergence: "stop" or "rollback".
      rollback_lr_factor: multiplies the learning rate at each rollback.
      max_rollbacks: how many a run may have.
    """

    max_log_ratio: float
    max_ratio: float
    on_divergence: str = "stop"
    rollback_lr_factor: float = 1.0
    max_rollbacks: int = 0


class Sampling(NamedTuple):
    """Which parameters samples follow from, and as what files they are written.

    Attributes:
      weights: "ema" or "raw".
      format: "npz", "folder" or "zip".
      name: of the files; empty for the step of the checkpoint.
    """

    weights: str
    format: str
    name: str


class Conditioning(NamedTuple):
    """What class samples are of, and how strongly.

    Attributes:
      label: name or number of the class, "all", or empty for samples of any.
      classifier: a workdir, or a checkpoint file.
      weight: `phi`.
      num_refine_steps: `kappa` of such samples.
    """

    label: str
    classifier: str
    weight: float
    num_refine_steps: int


class Curve(NamedTuple):
    """What mode curve takes the metric against.

    Attributes:
      over: "length" of the flow or training "step".
      lengths: of the flow, increasing; empty for a choice from 0 to K + 50.
    """

    over: str
    lengths: tuple[int, ...]


class Loggers(NamedTuple):
    """Where metrics go beside the JSON lines."""

    tensorboard: bool
    wandb: str

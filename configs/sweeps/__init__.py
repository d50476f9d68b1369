"""Sweeps: each file lists runs for `python -m experiments.sweep --sweep=FILE.py`."""

import math
from typing import Any


def train_steps(budget: float, flow_steps: int, update: float = 2.0) -> int:
    """Returns the number of training steps that a budget allows.

    Args:
      budget: gradients of the network per particle in the whole run.
      flow_steps: flow steps per training step, each of which needs one gradient.
      update: gradients that the update at the end of a training step costs.
    """
    return round(budget / (flow_steps + update))


def decaying(mean: float, decay: float) -> dict[str, Any]:
    """Returns settings of a step size that decays over the flow and has this mean over time."""
    mean_factor = (decay - 1.0) / math.log(decay) if decay != 1.0 else 1.0
    return {"flow.step_size": mean / mean_factor, "flow.step_size_decay": decay}

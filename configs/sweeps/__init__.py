"""Sweeps: each file lists runs for `python -m experiments.sweep --sweep=FILE.py`."""

import math
from typing import Any


def train_steps(budget: float, flow_steps: int, update: float = 2.0) -> int:
    """Returns how many train steps a run may take, that flow so many steps each.

    Args:
      budget: gradients of the network that the run may take, a particle. A train step takes one for
        each step of the flow and some for the update.
      flow_steps: steps of the flow in a train step.
      update: gradients of the update.
    """
    return round(budget / (flow_steps + update))


def decaying(mean: float, decay: float) -> dict[str, Any]:
    """Returns a step size that changes by a factor over the flow, whose mean over time is given."""
    mean_factor = (decay - 1.0) / math.log(decay) if decay != 1.0 else 1.0
    return {"flow.step_size": mean / mean_factor, "flow.step_size_decay": decay}

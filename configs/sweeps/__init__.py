"""Sweeps: each file lists runs for `python -m experiments.sweep --sweep=FILE.py`."""


def train_steps(budget: int, flow_steps: int) -> int:
    """Returns how many train steps a run may take, that flow so many steps each.

    Args:
      budget: gradients of the network that the run may take, a particle. A train step takes one for
        each step of the flow and about two for the update.
      flow_steps: steps of the flow in a train step.
    """
    return round(budget / (flow_steps + 2))

"""Ablation of each part of the recipe for small images, on digits at equal compute.

Command: python -m experiments.sweep --sweep=configs/sweeps/recipe_digits.py --workdir=runs/recipe
Cost: 12 runs per seed of 1 to 2.5 min each on two CPU cores that did other work as well.
Results: docs/ablations.md.
"""

import math
from typing import Any

from configs.base import small_images
from configs.sweeps import train_steps

_RECIPE = small_images(8, 8, 1)
_NUM_STEPS = 500
_FRACTION = _RECIPE.loss.gradient_penalty_fraction
_PATH = _RECIPE.flow.num_steps * _RECIPE.flow.step_size
# Gradients of the network per example in the update: for the loss, and for a full penalty.
_LOSS, _PENALTY = 2.0, 3.0


def of_cost(
    flow_steps: int = _RECIPE.flow.num_steps, penalised: float = _FRACTION, relative: float = 1.0
) -> dict[str, Any]:
    """Returns the number of training steps for the same cost as that of the recipe.

    Args:
      flow_steps: number of flow steps K.
      penalised: fraction of the batch with a penalty.
      relative: cost of the network relative to that of the recipe.
    """
    budget = _NUM_STEPS * (_RECIPE.flow.num_steps + _LOSS + _FRACTION * _PENALTY)
    update = _LOSS + penalised * _PENALTY
    return {"train.num_steps": train_steps(budget / relative, flow_steps, update)}


def of_length(flow_steps: int) -> dict[str, Any]:
    """Returns a length of the flow, with a step size that covers the same distance."""
    return {
        "flow.num_steps": flow_steps,
        "flow.num_refine_steps": flow_steps // 2,
        "flow.step_size": _PATH / flow_steps,
        "flow.noise_scale": _RECIPE.flow.noise_scale
        * math.sqrt(_RECIPE.flow.num_steps / flow_steps),
        **of_cost(flow_steps),
    }


def with_penalty(weight: float, fraction: float = _FRACTION) -> dict[str, Any]:
    """Returns a gradient penalty on a fraction of the batch."""
    return {
        "loss.gradient_penalty": weight,
        "loss.gradient_penalty_fraction": fraction,
        **of_cost(penalised=fraction if weight else 0.0),
    }


def get_sweep() -> dict[str, Any]:
    """Returns the sweep, as `experiments.sweep` describes."""
    return {
        "config": "configs/digits.py",
        "settings": {
            # Also what the groups vary, so that they share the run with these values.
            **of_length(_RECIPE.flow.num_steps),
            **with_penalty(_RECIPE.loss.gradient_penalty),
            "optimizer.b1": _RECIPE.optimizer.b1,
            "network.use_bias": _RECIPE.network.use_bias,
            "network.width": _RECIPE.network.width,
            "network.blocks": _RECIPE.network.blocks,
            "evaluate.num_samples": 1_000,
        },
        "groups": {
            "convolutions": {
                "with biases": {"network.use_bias": True},
                "without": {"network.use_bias": False},
            },
            "gradient penalty": {
                "none": with_penalty(0.0),
                "0.1": with_penalty(0.1),
                "0.3": with_penalty(0.3),
                "1": with_penalty(1.0),
                "1, on all examples": with_penalty(1.0, 1.0),
            },
            "flow steps K": {f"K = {k}": of_length(k) for k in (6, 12, 24)},
            "b1 of Adam": {f"{b1:g}": {"optimizer.b1": b1} for b1 in (0.5, 0.9)},
            "noise per step": {f"{nu:g}": {"flow.noise_scale": nu} for nu in (0.007, 0.02)},
            "width": {
                "16": {
                    "network.width": 16,
                    "network.blocks": ((16, 1), (32, 2), (32, 1)),
                    **of_cost(relative=0.25),
                },
                "32": {"network.width": 32, "network.blocks": _RECIPE.network.blocks},
                "64": {
                    "network.width": 64,
                    "network.blocks": ((64, 1), (128, 2), (128, 1)),
                    **of_cost(relative=4.0),
                },
            },
        },
        "seeds": (0, 1),
        "metrics": ("frechet_svc_360", "top_probability_svc_360"),
    }

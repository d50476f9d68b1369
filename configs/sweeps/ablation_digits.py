"""Ablations on digits: prior, length of the flow, loss and divergence, decaying step sizes.

Command: python -m experiments.sweep --sweep=configs/sweeps/ablation_digits.py --workdir=runs/ab
Cost: 10 runs per seed of about 45 s each on two CPU cores.
Results: docs/ablations.md.
"""

from typing import Any

from configs.base import PAIRS
from configs.sweeps import decaying, train_steps

BUDGET = 400 * (20 + 2)


def of_length(flow_steps: int) -> dict[str, Any]:
    """Returns a length of the flow and the number of training steps that the budget allows."""
    return {"flow.num_steps": flow_steps, "train.num_steps": train_steps(BUDGET, flow_steps)}


def get_sweep() -> dict[str, Any]:
    """Returns the sweep, as `experiments.sweep` describes."""
    return {
        "config": "configs/digits.py",
        "settings": {
            # Also what the groups vary, so that they share the run with these values.
            "prior.name": "data_dependent",
            "loss.name": "lr",
            "loss.divergence": "kl",
            **of_length(20),
            **decaying(1.0, 1.0),
            "precision": "float32",
            # Runs that diverge stop, and count as such.
            "train.max_log_ratio": 50.0,
            "train.on_divergence": "stop",
            # Without regularisation, as in the paper.
            "loss.gradient_penalty": 0.0,
            "prior.jitter": 1e-4,
            "flow.noise_scale": 0.01,
            "flow.num_refine_steps": 10,
            "optimizer.b1": 0.9,
            "optimizer.warmup_steps": 0,
            # A smaller network than the config's, fewer training steps, and a higher learning rate.
            "network.width": 16,
            "network.blocks": ((16, 1), (32, 2), (32, 1)),
            "optimizer.learning_rate": 2e-3,
            "evaluate.num_samples": 1_000,
        },
        "groups": {
            "prior": {
                "DDP": {"prior.name": "data_dependent"},
                "UP": {"prior.name": "uniform"},
            },
            "flow steps K": {f"K = {k}": of_length(k) for k in (5, 10, 20, 40)},
            "loss, divergence": {
                f"{loss}, {divergence}": {"loss.name": loss, "loss.divergence": divergence}
                for loss, divergence in PAIRS.values()
            },
            "step size, end over start": {f"{d:g}": decaying(1.0, d) for d in (0.1, 1.0, 10.0)},
        },
        "seeds": (0, 1),
        "metrics": ("frechet_svc_360", "top_probability_svc_360"),
    }

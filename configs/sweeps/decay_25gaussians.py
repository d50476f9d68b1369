r"""25 Gaussians with step sizes that shrink or grow over the flow and have the same mean.

Command: python -m experiments.sweep --sweep=configs/sweeps/decay_25gaussians.py \
  --workdir=runs/decay
Cost: 4 runs per seed of about 45 s each on two CPU cores.
Results: docs/ablations.md.
"""

from typing import Any

from configs.sweeps import decaying


def get_sweep() -> dict[str, Any]:
    """Returns the sweep, as `experiments.sweep` describes."""
    return {
        "config": "configs/25gaussians.py",
        "groups": {
            "step size, end over start": {
                f"{d:g}": decaying(0.1, d) for d in (0.01, 0.1, 1.0, 10.0)
            },
        },
        "seeds": (0, 1),
        "metrics": ("energy_ratio", "high_quality_share"),
    }

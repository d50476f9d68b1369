r"""A healthy run on a swiss roll, and five runs with one bad setting each.

Command: python -m experiments.sweep --sweep=configs/sweeps/what_goes_wrong.py \
  --workdir=runs/wrong
Cost: 6 runs of half a minute each on two CPU cores.
Picture: docs/images/what_goes_wrong.png, by `python -m docs.what_goes_wrong`.
"""

from typing import Any


def get_sweep() -> dict[str, Any]:
    """Returns the sweep, as `experiments.sweep` describes."""
    return {
        "config": "configs/swissroll.py",
        "settings": {
            "train.num_steps": 1_500,
            "snapshot.every_steps": 100,
            "evaluate.num_samples": 4_000,
            "evaluate.batch_size": 4_000,
        },
        "groups": {
            "swiss roll": {
                "as it should be": {},
                "step size 50 times as large": {"flow.step_size": 5.0},
                "step size 20 times smaller": {"flow.step_size": 0.005},
                "noise 5 times as large": {"flow.noise_scale": 0.05},
                "noise 10 times as large": {"flow.noise_scale": 0.1},
                "flow too short, K = 5": {"flow.num_steps": 5},
            },
        },
        "seeds": (0,),
        "metrics": ("energy_ratio", "kl_to_data"),
    }

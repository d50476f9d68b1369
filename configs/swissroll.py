"""A swiss roll in the plane, with the logistic-regression loss and the KL flow.

Command: python -m experiments.main --config=configs/swissroll.py --workdir=runs/swissroll
Cost: 40 to 80 s on two CPU cores, with evaluation and report.
Score: energy ratio 0.86 ± 0.30 (prior 160, real data 1.33 ± 0.51); seed 0. Over seeds 0 to 4, on
  another CPU, 0.87 to 1.22, with a mean of 1.04 and a standard deviation of 0.14.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.points()
    c.data.name = "swissroll"
    return base.variant(c, name)

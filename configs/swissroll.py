"""A swiss roll in the plane: logistic-regression loss and KL flow.

Command: python -m experiments.main --config=configs/swissroll.py --workdir=runs/swissroll
Cost: about 40 s on two CPU cores, with evaluation and report.
Score: energy ratio 0.3 to 1.2 (1: as near to data as fresh data are).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny": seconds, for a first look or a test."""
    c = base.points()
    c.data.name = "swissroll"
    return base.variant(c, name)

"""8 Gaussians on a circle.

    python -m experiments.main --config=8gaussians --workdir=runs/8gaussians

Data: built in. Time: 1 to 4 minutes on two CPU cores. Scores: docs/results.md#points-and-digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.points()
    c.data.name = "8gaussians"
    return base.variant(c, name)

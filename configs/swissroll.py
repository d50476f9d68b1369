"""Swiss roll in the plane: logistic loss, KL flow.

    python -m experiments.main --config=swissroll --workdir=runs/swissroll

Data: built in. Time: about a minute on two CPU cores. Scores: docs/results.md#points-and-digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.points()
    c.data.name = "swissroll"
    return base.variant(c, name)

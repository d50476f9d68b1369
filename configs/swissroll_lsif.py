"""Swiss roll by least squares: LSIF loss, Pearson flow.

    python -m experiments.main --config=swissroll_lsif --workdir=runs/swissroll_lsif

Data: built in. Time: 1 to 4 minutes on two CPU cores. Scores: docs/results.md#points-and-digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.points()
    c.data.name = "swissroll"
    c.loss.name = "lsif"
    c.loss.divergence = "pearson"
    # The gradient of this loss grows with the square of the ratio, so it needs a smaller rate.
    c.optimizer.learning_rate = 2e-4
    c.train.num_steps = 6_000
    return base.variant(c, name)

"""Swiss roll in the plane: logistic loss and KL flow, or by least squares with `:lsif_pearson`.

    python -m experiments.main --config=swissroll --workdir=runs/swissroll

Data: built in. Time: 50 CPU seconds. Scores: docs/results.md#points-and-digits
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants "tiny" and "lsif_pearson"."""
    c = base.points()
    c.data.name = "swissroll"
    if "lsif_pearson" in name.split(","):
        # The gradient of this loss grows with the square of the ratio, so it needs a smaller rate.
        c.optimizer.learning_rate = 2e-4
        c.train.num_steps = 6_000
    else:
        c.flow.num_steps = 50  # Samples as good as those of 100 steps, in two thirds of the time.
    return base.variant(c, name)

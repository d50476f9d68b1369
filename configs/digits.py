"""Digits of 8 x 8 pixels by the recipe for small images.

    python -m experiments.main --config=digits --workdir=runs/digits

Data: those of scikit-learn, 1,437 for training. Time: 6 CPU minutes. With
--config.network.by_class=True, a ratio per class. Scores: docs/results.md#digits-of-8-x-8-pixels
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.small_images()
    c.data.name = "digits"
    c.train.num_steps = 1_500
    c.evaluate.num_samples = 2_000
    c.evaluate.batch_size = 500
    return base.variant(c, name)

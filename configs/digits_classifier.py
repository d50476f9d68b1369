"""A classifier of digits that is trained under attack, to guide samples of a class.

    python -m experiments.main --mode=classifier --config=digits_classifier
      --workdir=runs/digits_classifier

Data: those of scikit-learn. Time: a minute. How to use it: docs/conditional.md#by-a-classifier
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.get_config()
    c.data.name = "digits"
    c.network.name = "resnet"
    c.network.width = 16
    c.network.blocks = ((32, 2), (64, 2))
    c.attack.epsilon = 0.75
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 1_500
    c.train.batch_size = 64
    c.train.ema_rate = 0.99
    c.train.steps_per_dispatch = 10
    c.checkpoint.every_steps = 500
    return base.variant(c, name)

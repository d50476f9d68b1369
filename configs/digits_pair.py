"""Threes to eights: unpaired translation of digits of 8 x 8 pixels.

    python -m experiments.main --config=digits_pair --workdir=runs/digits_pair

Data: those of scikit-learn. Time: three minutes on two CPU cores.
What it reaches: docs/conditional.md#translation
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.get_config()
    c.data.name = "digits"
    c.data.source_class = "3"
    c.data.target_class = "8"
    c.data.dequantisation = 0.1  # Without this noise, the network memorises the few images.
    c.network.name = "resnet"
    c.network.width = 32
    c.network.blocks = ((32, 1), (64, 2), (64, 1))
    c.prior.name = "source"
    c.flow.num_steps = 20
    c.flow.num_refine_steps = 10
    c.flow.step_size = 1.0
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 1_000
    c.checkpoint.every_steps = 500
    c.snapshot.every_steps = 250
    c.evaluate.num_samples = 36  # The held-out images of a digit.
    c.evaluate.batch_size = 36
    return base.variant(c, name)

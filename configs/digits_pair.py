"""Unpaired translation on built-in data: from the digit 3 to the digit 8, or any other two digits.

Command: python -m experiments.main --config=configs/digits_pair.py --workdir=runs/digits_pair
Other digits: --config.data.source_class=1 --config.data.target_class=7
Cost: about 3 min on two CPU cores, with evaluation and report.
Score: a classifier of ten digits assigns all 36 held-out threes to eights after the flow (97% of
  real eights, and no three before the flow). For 33% of the images, the nearest source is their own
  (3% by chance). Seed 0.
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
    c.flow.noise_scale = 0.01
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 1_000
    c.train.batch_size = 64
    c.checkpoint.every_steps = 500
    c.snapshot.every_steps = 250
    c.evaluate.num_samples = 36  # The held-out images of a digit.
    c.evaluate.batch_size = 36
    return base.variant(c, name)

"""A classifier of CIFAR-10, for evaluation, or under attack to guide samples.

    python -m experiments.main --mode=classifier --config=cifar10_classifier --data_dir=cifar10.zip
      --workdir=runs/cifar10_classifier

Data: as of the run that it judges. Time: 43 to 85 CPU minutes. With --config.attack.num_steps=7
it can guide (docs/conditional.md#by-a-classifier).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.get_config()
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    c.data.num_held_out = 2_000
    c.precision = "auto"
    c.network.name = "resnet"
    c.network.width = 32
    c.network.blocks = ((64, 2), (128, 1), (128, 2), (256, 1))
    c.network.use_bias = True
    c.augment.max_shift = 4
    c.attack.num_steps = 0
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 10_000
    c.train.batch_size = 64
    c.checkpoint.every_steps = 500
    return base.variant(c, name)

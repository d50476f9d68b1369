"""A classifier of MNIST, for evaluation, or under attack to guide samples.

    python -m experiments.main --mode=classifier --config=mnist_classifier --data_dir=mnist.zip
      --workdir=runs/mnist_classifier

Data: as of the run that it judges. Time: 5 minutes of one core. With --config.attack.num_steps=7
it can guide (docs/conditional.md#by-a-classifier).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant "tiny", which runs in seconds."""
    c = base.get_config()
    c.data.name = "folder"
    c.data.channels = 1
    c.data.num_held_out = 6_000  # As in configs/mnist.py.
    c.precision = "auto"
    c.network.name = "resnet"
    c.network.width = 32
    c.network.blocks = ((32, 2), (64, 2), (64, 1))
    c.augment.max_shift = 2
    c.attack.num_steps = 0
    c.optimizer.learning_rate = 1e-3
    c.optimizer.clip_norm = 1.0
    c.optimizer.warmup_steps = 200
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 6_000
    c.train.batch_size = 64
    c.checkpoint.every_steps = 500
    return base.variant(c, name)

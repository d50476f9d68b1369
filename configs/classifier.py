"""Classifiers, for evaluation, or trained under attack to guide samples.

    python -m experiments.main --mode=classifier --config=classifier:mnist --data_dir=mnist.zip
      --workdir=runs/mnist_classifier

Variants: mnist (5 minutes of one core), cifar10 (43 to 85 minutes), digits (1 minute, under
attack). With --config.classifier.attack_steps=7 the others can guide as well
(docs/conditional.md#by-a-classifier).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "digits") -> ConfigDict:
    """Returns the config of a data set, also with "tiny", such as "mnist,tiny"."""
    names = name.split(",")
    c = base.get_config()
    c.network.name = "resnet"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.checkpoint.every_steps = 500
    if {"mnist", "cifar10"} & set(names):
        c.data.name = "folder"
        c.precision = "auto"
        c.network.width = 32
        c.classifier.attack_steps = 0
    else:
        c.data.name = "digits"
        c.network.width = 16
        c.network.blocks = ((32, 2), (64, 2))
        c.classifier.epsilon = 0.75
        c.train.num_steps = 1_500
        c.train.ema_rate = 0.99
    if "mnist" in names:
        c.data.channels = 1
        c.data.num_held_out = 6_000  # As in configs/mnist.py.
        c.network.blocks = ((32, 2), (64, 2), (64, 1))
        c.classifier.max_shift = 2
        c.optimizer.clip_norm = 1.0
        c.optimizer.warmup_steps = 200
        c.train.num_steps = 6_000
    elif "cifar10" in names:
        c.data.image_size = 32
        c.data.random_flip = True
        c.data.num_held_out = 2_000
        c.network.blocks = ((64, 2), (128, 1), (128, 2), (256, 1))
        c.network.use_bias = True
        c.classifier.max_shift = 4
        c.train.num_steps = 10_000
    return base.variant(c, name, "mnist", "cifar10", "digits")

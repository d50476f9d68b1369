"""Cats to dogs on a CPU: a small network, at 32 x 32.

    python -m experiments.main --config=cat2dog_small --data_dir=cifar10.zip --workdir=runs/cats

Data: a labelled set with the classes cat and dog, such as CIFAR-10. Time: 6 minutes of
one core with --config.train.num_steps=800 --config.train.batch_size=32. What it reaches:
docs/paper.md, claim 9.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_js"."""
    c = base.small_images()
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    c.data.source_class = "cat"
    c.data.target_class = "dog"
    c.prior.name = "source"
    c.train.num_steps = 1_500
    c.evaluate.num_samples = 200
    c.evaluate.batch_size = 200
    return base.variant(c, name)

"""CIFAR-10 with a narrow network and a short flow: real colour images on two CPU cores.

Command: python -m experiments.main --config=configs/cifar10_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cifar10_small
The data are a folder or zip of PNG or JPEG files; use --config.data.name=tfds:cifar10 for the
prepared TFDS set.
Cost: about 15 min on two CPU cores by the dry run, with evaluation and report.
Score: not measured with the present metrics. Samples show scenes and objects with clear outlines
  that cannot be named.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "up"."""
    c = base.small_images(32, 32, 3)
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    return base.variant(c, name)

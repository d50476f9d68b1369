"""CIFAR-10 with a narrow network and a short flow: real colour images on two CPU cores.

Command: python -m experiments.main --config=configs/cifar10_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cifar10_small
The data are a folder or zip of PNG or JPEG files; use --config.data.name=tfds:cifar10 for the
prepared TFDS set.
Cost: not measured on an idle machine. A train step takes about 4 s on one core without AVX-512.
Score: not measured with this recipe.
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

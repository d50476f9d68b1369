"""CIFAR-10 with a narrow network and a short flow: real colour images on two CPU cores.

Command: python -m experiments.main --config=configs/cifar10_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cifar10_small
The data are a folder or zip of PNG or JPEG files; use --config.data.name=tfds:cifar10 for the
prepared TFDS set.
Cost: 49 min of CPU time with AVX-512 (75 min with AVX2).
Score: Fréchet distance of 500 images 128 ± 7 (prior 434 ± 8, real images 25 ± 5) in the features of
  a classifier that is right on 78.6% of held-out images, 0.022 ± 0.007 (0.124 ± 0.027, 0.023 ±
  0.004) in random convolutions, mean top probability 0.638 (0.653, 0.824), with seed 1 and 20,000
  images. Scenes and colours are those of the data, but few samples show an object that one can
  name.
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

"""MNIST, 28 x 28 grey, by the recipe for small images.

Command: python -m experiments.main --config=configs/mnist.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/mnist
The data are a folder or zip of PNG or JPEG files in a folder per class; use
--config.data.name=tfds:mnist for the prepared TFDS set.
Cost: not measured on an idle machine. A train step takes about 2 s on one core without AVX-512.
Score: not measured at full length. After 600 of 2,000 steps most samples are strokes that look like
  digits; docs/ablations.md has the figures.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variant: "tiny"."""
    c = base.small_images(28, 28, 1)
    c.data.name = "folder"
    c.data.image_size = 28
    c.data.channels = 1
    return base.variant(c, name)

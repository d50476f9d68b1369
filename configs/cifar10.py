"""CIFAR-10, 32 x 32 in colour (section 5.2 of the paper).

    python -m experiments.main --config=cifar10 --workdir=runs/cifar10

Data: prepared by TFDS; add --config.data.name=folder --data_dir=FOLDER for a folder or zip.
Time: not run at full scale; it needs a GPU, docs/hardware.md. Variants: lr_kl, lsif_pearson, up
and others.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl,up"."""
    c = base.images(name)
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.random_flip = True
    c.network.name = "resnet32"
    # As in the authors' runs, although the paper says that it was not worth its cost.
    c.network.spectral_norm = True
    if "up" in name.split(","):
        c.train.num_steps = 120_000
        c.optimizer.boundaries = (100_000, 110_000)
    return base.variant(c, name)

"""CelebA, 64 x 64 in colour (section 5.2 of the paper).

    python -m experiments.main --config=celeba --data_dir=FOLDER --workdir=runs/celeba

Data: the partitions in folders train and test, or TFDS with --config.data.name=tfds:celeb_a.
Time: not run at full scale; it needs a GPU, docs/hardware.md. Variants: lr_kl, lsif_pearson, up
and others.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl,up"."""
    c = base.images(name)
    c.data.name = "folder"
    c.data.center_crop = 140
    c.data.image_size = 64
    c.data.random_flip = True
    c.network.name = "resnet64"
    return base.variant(c, name)

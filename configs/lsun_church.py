"""LSUN Church, 128 x 128 in colour (section 5.2 of the paper).

    python -m experiments.main --config=lsun_church --data_dir=FOLDER --workdir=runs/lsun_church

Data: a folder, or TFDS with --config.data.name=tfds:lsun/church_outdoor. Images are squeezed to a
square; --config.data.keep_aspect=True crops them, as in the authors' code. Time: not run at full
scale; it needs a GPU, docs/hardware.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl,up"."""
    c = base.images(name)
    c.data.name = "folder"
    c.data.image_size = 128
    c.data.random_flip = True
    c.data.keep_aspect = False  # The paper squeezes the images to the square.
    c.network.name = "resnet128"
    c.prior.rank = 1_000  # The full covariance would need 10 GB.
    return base.variant(c, name)

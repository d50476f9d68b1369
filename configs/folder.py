"""Your own images, in a folder or a zip. The network and the prior follow from their size.

Command: python -m experiments.main --config=configs/folder.py --config.data.dir=my_images
  --config.data.image_size=64 --workdir=runs/my_images
The recipe is that of the paper for images (section 5): its network for the nearest of the sizes 32,
64 and 128, and the data-dependent prior, with the full covariance up to 64 x 64 in colour and a
low-rank one above. docs/data.md describes the formats and settings of images.
Variants: folder.py:lsif_pearson, folder.py:up and so on, see `base.variant`.
Cost: grows with the number of pixels. All 100,000 steps at 64 x 64 take days on a GPU.
Score: depends on the images; the report of the run compares with held-out ones.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "up" or "tiny"."""
    c = base.get_config()
    c.data.name = "folder"
    c.data.image_size = 64
    c.data.random_flip = True
    c.data.dequantisation = 0.03
    c.network.name = "auto"
    c.prior.name = "data_dependent"
    c.evaluate.num_samples = 1_000
    c.evaluate.batch_size = 100
    c = base.variant(c, name)
    if "tiny" in name.split(","):
        c.network.width = 4
    return c

"""LSUN Church, 128 x 128 in colour (section 5.2 of the paper).

Command: python -m experiments.main --config=configs/lsun_church.py
  --workdir=runs/lsun_church --data_dir=LMDB
Variants: lsun_church.py:lr_kl, lsun_church.py:lsif_pearson,up and others, see `base.variant`.
Cost: not run at full scale; docs/scaling.md has estimates for GPUs and TPUs.
Score: the paper shows samples and no metric.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl,up"."""
    c = base.images()
    c.data.name = "lsun"
    c.data.image_size = 128
    c.data.random_flip = True
    c.data.keep_aspect = False  # The paper squeezes the images to the square.
    c.network.name = "resnet128"
    c.prior.rank = 1_000  # The full covariance would need 10 GB.
    return base.variant(c, name)

"""LSUN Church, 128 x 128 in colour (section 5.2 of the paper).

Command: python -m experiments.main --config=configs/lsun_church.py
  --workdir=runs/lsun_church --config.data.name=tfds:lsun/church_outdoor
  The held-out images are those of the split "validation". To read files, put the partitions into
  the folders train and validation, and use --data_dir=FOLDER_OR_ZIP instead.
Variants: lsun_church.py:lr_kl, lsun_church.py:lsif_pearson,up and others, see `base.variant`.
Noise: the dry run warns that flowed samples have more noise (0.10) than data (0.03). These are the
  paper's settings.
Precision: bfloat16 on accelerators; --config.precision=float32 is that of the authors.
Cost: not run at full scale; docs/hardware.md says how to estimate it.
Score: the paper shows samples and no metric.
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

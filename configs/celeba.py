"""CelebA, 64 x 64 in colour (section 5.2 of the paper).

Command: python -m experiments.main --config=configs/celeba.py
  --workdir=runs/celeba --config.data.name=tfds:celeb_a
  The authors train on the training partition, which is the split "train" of TFDS. To read files,
  put the partitions into the folders train and test, and use --data_dir=FOLDER_OR_ZIP instead.
Variants: celeba.py:lr_kl, celeba.py:lsif_pearson,up and others, see `base.variant`.
Noise: the dry run warns that flowed samples have more noise (0.10) than data (0.03). These are the
  paper's settings.
Precision: bfloat16 on accelerators; --config.precision=float32 is that of the authors.
Cost: not run at full scale; docs/hardware.md says how to estimate it.
Score: FID 17.77 (LSIF-chi^2) and 18.09 (LR-KL) in the paper, legacy protocol.
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

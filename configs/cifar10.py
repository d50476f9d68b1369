"""CIFAR-10, 32 x 32 in colour (section 5.2 of the paper).

Command: python -m experiments.main --config=configs/cifar10.py --workdir=runs/cifar10
  To read a folder or zip instead of the prepared TFDS set, add
  --config.data.name=folder --data_dir=FOLDER_OR_ZIP.
Variants: cifar10.py:lr_kl, cifar10.py:lsif_pearson,up and others, see `base.variant`.
Noise: the dry run warns that flowed samples have more noise (0.10) than data (0.03). These are the
  paper's settings.
Precision: bfloat16 on accelerators; --config.precision=float32 is that of the authors.
Cost: not run at full scale; docs/hardware.md says how to estimate it.
Score: FID 22.28 (LSIF-chi^2), 22.61 (LR-KL) and 30.23 (uniform prior) in the paper, legacy
  protocol.
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

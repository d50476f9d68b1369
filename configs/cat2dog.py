"""Cats to dogs, 64 x 64: unpaired translation, where the flow starts from the other domain.

Command: python -m experiments.main --config=configs/cat2dog.py
  --workdir=runs/cat2dog --data_dir=FOLDER
Variants: cat2dog.py:lr_kl, cat2dog.py:lr_js and the other pairs of `base.variant`, not "ddp" and
  "up", because their priors would replace the cats.
Noise: the dry run warns that flowed samples have more noise (0.10) than data (0.03). These are the
  paper's settings.
Precision: bfloat16 on accelerators; --config.precision=float32 is that of the authors.
Cost: not run at full scale; docs/hardware.md says how to estimate it.
Score: FID 108.10 against 100 test images in the paper (table 3).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_kl"."""
    c = base.images()
    c.data.name = "pair"
    c.data.resize = 84
    c.data.image_size = 64
    c.data.random_flip = True
    c.network.name = "resnet64_shallow"
    c.network.attention = True
    c.network.spectral_norm = True
    c.prior.name = "source"
    c.flow.num_refine_steps = 10
    c.optimizer.boundaries = (20_000, 30_000)
    c.train.num_steps = 40_000  # Longer training tends to diverge.
    c.evaluate.num_samples = 100
    return base.variant(c, name)

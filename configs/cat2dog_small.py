"""Cats to dogs of CIFAR-10, 32 x 32: unpaired translation of real images on two CPU cores.

Command: python -m experiments.main --config=configs/cat2dog_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cat2dog_small
Other classes: --config.data.source_class=horse --config.data.target_class=deer
Cost: with version 0.1 and its settings, about 15 min on two CPU cores, with evaluation and report.
  The current settings were not timed; --mode=dry_run estimates their cost.
Score: with version 0.1 and its settings, a support-vector classifier assigned 46% of 200 held-out
  cats to dogs after the flow, 32% before it, and 59% of real dogs, so it is a weak classifier. The
  distance of an image to its own source was 0.08 (root mean square), and that of a random dog to a
  cat 0.70. The flow did not change the outlines of the cats; that would need longer training.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "lr_js"."""
    c = base.small_images(32, 32, 3)
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    c.data.source_class = "cat"
    c.data.target_class = "dog"
    c.prior.name = "source"
    c.train.num_steps = 1_500
    c.evaluate.num_samples = 200
    c.evaluate.batch_size = 200
    return base.variant(c, name)

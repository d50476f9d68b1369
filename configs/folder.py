"""Your own images, in a folder or a zip, by the recipe for small images.

    python -m experiments.main --config=folder --data_dir=my_images --workdir=runs/my_images

Images become 32 x 32 pixels; --config.data.image_size=64 keeps more. Time: 20 to 49 minutes of one
core. The variant folder.py:paper is the paper's recipe, for accelerators. See docs/own_images.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "paper" or "tiny"."""
    if "paper" in name.split(","):
        c = base.images(name)
        c.loss.name, c.loss.divergence = "lr", "kl"
        c.network.name = "auto"
    else:
        c = base.small_images()
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.channels = 0  # As stored.
    c.evaluate.num_samples, c.evaluate.batch_size = 1_000, 100
    return base.variant(c, name, "paper")

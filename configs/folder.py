"""Your own images, in a folder or a zip, with a recipe that fits the images and the device.

Command: python -m experiments.main --config=configs/folder.py --config.data.dir=my_images
  --workdir=runs/my_images
Images become 32 x 32 pixels, whose 2,000 steps take 20 to 49 min on a core. A training step with
--config.data.image_size=64 takes 3 to 4 times as long.
On a CPU, this is the recipe for small images (`base.small_images`), whose step size and network
depend on the image size. Grey images stay grey. On an accelerator, it is the recipe of the paper
(section 5), with its network for the nearest of the sizes 32, 64 and 128. Both use the
data-dependent prior: on a CPU and with 2,100 images or more a mixture, otherwise one Gaussian with
the full covariance up to 64 x 64 in colour and a low-rank one above.
docs/data.md describes formats and settings of images. --mode=dry_run estimates the time.
Variants: folder.py:lsif_pearson, folder.py:up and others, see `base.variant`.
Score: depends on the images. The report of the run compares samples with held-out images.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config for accelerators, or its variants, such as "up" or "tiny"."""
    c = base.images(name)
    c.loss.name, c.loss.divergence = "lr", "kl"
    c.network.name = "auto"
    return _with_variants(_of_a_folder(c), name)


def get_config_for(platform: str, event_shape: tuple[int, ...], name: str = "") -> ConfigDict:
    """Returns the config for a device and for images of a shape (height, width, channels)."""
    if platform != "cpu":
        return get_config(name)
    return _with_variants(_of_a_folder(base.small_images(*event_shape)), name)


def _of_a_folder(c: ConfigDict) -> ConfigDict:
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.channels = 0  # As stored.
    c.evaluate.num_samples = 1_000
    c.evaluate.batch_size = 100
    return c


def _with_variants(c: ConfigDict, name: str) -> ConfigDict:
    c = base.variant(c, name)
    if "tiny" in name.split(","):
        c.network.width = 4
    return c

"""MNIST by the recipe for small images, trained for longer.

    python -m experiments.main --config=mnist --data_dir=mnist.zip --workdir=runs/mnist

Data: a folder, zip or .npz of the images, docs/own_images.md#mnist-and-cifar-10. Time: 38 minutes
of a core with AMX. Variants: ddp (one Gaussian), tiny, and short: ten minutes of one core, half of
the channels, twice the rate. Scores: docs/results.md#the-race
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "short"."""
    c, short = base.small_images(), "short" in name.split(",")
    c.data.name = "folder"
    c.data.image_size, c.data.channels = 28, 1
    if short:
        c.network.blocks, c.optimizer.learning_rate = ((32, 2), (32, 2), (64, 1)), 1e-3
    # The more images are held out, the less a Fréchet distance depends on which these are.
    c.data.num_held_out = 6_000
    c.evaluate.num_samples = 5_000
    c.evaluate.batch_size = 500
    c.train.num_steps = 1_900 if short else 5_000
    return base.variant(c, name, "short")

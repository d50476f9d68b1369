"""CIFAR-10 on a CPU: a small network, a flow of 6 long steps.

    python -m experiments.main --config=cifar10_small --data_dir=cifar10.zip --workdir=runs/cifar10

Data: folder, zip or .npz of the images. Time: 1.5 to 3.5 hours on two cores; --mode=dry_run
measures yours. Labels: --config.network.by_class=True. Variants: ddp, up, tiny, and short: half an
hour of one core, half of the channels, rate 1e-3 (labels: 5e-4). Scores: docs/results.md#the-race
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "short"."""
    c, short = base.small_images(), "short" in name.split(",")
    c.data.name = "folder"
    c.data.image_size = 32
    c.data.random_flip = True
    c.data.num_held_out = 2_000
    n, c.optimizer.learning_rate = (32, 1e-3) if short else (64, c.optimizer.learning_rate)
    c.network.blocks = ((n, 2), (2 * n, 1), (2 * n, 2), (2 * n, 1))
    # More and cheaper steps: half as many flow steps of twice the size, and half the batch.
    c.flow.num_steps = 6
    c.flow.num_refine_steps = 1
    c.flow.step_size = 25.4
    c.flow.noise_scale = 0.01
    c.train.num_steps = 5_600 if short else 27_000
    c.train.batch_size = 32
    c.checkpoint.every_steps = 500
    c.snapshot.every_steps = 500
    c.evaluate.num_samples = 5_000  # Five draws of 1,000.
    return base.variant(c, name, "short")

"""CIFAR-10 with a narrow network and a short flow: real colour images on two CPU cores.

Command: python -m experiments.main --config=configs/cifar10_small.py --data_dir=FOLDER_OR_ZIP
  --workdir=runs/cifar10_small
The data are a folder or zip of PNG or JPEG files; use --config.data.name=tfds:cifar10 for the
prepared TFDS set.
Cost: about 15 min on two CPU cores by the dry run, with evaluation and report.
Score: not measured with the present metrics. Samples show scenes and objects with clear outlines
  that cannot be named.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the config, or its variants, such as "up"."""
    c = base.images()
    c.data.name = "folder"
    c.data.image_size = 32
    c.network.name = "resnet"
    c.network.width = 32
    c.network.blocks = ((32, 2), (64, 1), (64, 2), (64, 1))
    c.loss.name = "lr"
    c.loss.divergence = "kl"
    # The paper's flow of 100 steps of 3 in a tenth of the steps: at equal compute, more updates of
    # the network are worth more.
    c.flow.num_steps = 10
    c.flow.num_refine_steps = 10
    c.flow.step_size = 20.0
    c.optimizer.learning_rate = 2e-3
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 2_000
    c.train.batch_size = 32
    c.train.ema_ramp = True
    c.log.every_steps = 20
    c.checkpoint.every_steps = 200
    c.snapshot.every_steps = 200
    c.evaluate.num_samples = 1_000
    return base.variant(c, name)
